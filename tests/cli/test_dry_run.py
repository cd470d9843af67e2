"""``--dry-run``: pictures, names, sizes and memory; nothing is loaded, drawn or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm.cli import generate
from ldm.memory import refusal
from ldm.pipeline import Pipeline


@pytest.fixture(autouse=True)
def _nothing_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Pipeline, "from_pretrained", never)


def test_pictures_and_memory(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    argv = ["a red car", "a dog", "-b", "3", "-s", "7", "-o", "new/", "--batch-size", "4"]
    assert generate.main([*argv, "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "new/a-red-car-7.png  128x128  seed 7  a red car"
    assert lines[5] == "new/a-dog-12.png  128x128  seed 12  a dog"
    assert lines[6].startswith("memory: 4 at once of 128x128: ") and "weights" in lines[6]
    assert lines[7].startswith("memory: 2 at once of 128x128: ")
    assert len(lines) == 8 and list(tmp_path.iterdir()) == []


def test_two_passes_and_json(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    argv = ["a red car", "-s", "1", "--hires-scale", "2", "--dry-run", "--json"]
    assert generate.main(argv) == 0
    picture, first, second = map(json.loads, capfd.readouterr().out.splitlines())
    assert (picture["width"], picture["seed"], picture["path"]) == (256, 1, "a-red-car-1.png")
    assert first["memory"]["width"] == 128 and second["memory"]["width"] == 256
    assert second["memory"]["encoding"] > 0 == first["memory"]["encoding"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_model(folder: Path, capfd: pytest.CaptureFixture) -> None:
    argv = ["x", "--model", str(folder), "--save-control", "c/", "--dry-run"]
    assert generate.main(argv) == 2  # as the run itself
    assert generate.main(["x", "--model", str(folder), "--dry-run", "-s", "1"]) == 0
    assert "memory: 1 at once" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--model", "missing"], 1, "missing does not exist"),
        (["--width", "100"], 2, "width is 100"),
        (["--num-inference-steps", "0"], 2, "is 0"),
        (["--image", "missing.png"], 1, "missing.png"),
    ],
)
def test_errors_are_those_of_the_run(
    capfd: pytest.CaptureFixture, argv: list[str], code: int, words: str
) -> None:
    assert generate.main(["x", "--dry-run", *argv]) == code
    assert words in capfd.readouterr().err


def test_what_cannot_fit(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.fast.memory.available_memory", lambda device: 300_000_000)
    monkeypatch.setattr(refusal, "be_thrifty", lambda: None)
    argv = ["x", "-W", "2048", "-H", "2048", "--dry-run", "-s", "1"]
    assert generate.main(argv) == 1
    out, err = capfd.readouterr()
    assert "memory: 1 at once of 2048x2048" in out
    assert err.startswith("error: a picture of 2048x2048 would need") and "what fits: " in err
    assert len(err.splitlines()) == 1
