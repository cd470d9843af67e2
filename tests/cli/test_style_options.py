"""``--reference-image`` and ``--style-aligned`` as a user types them: records, replay, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.cli.common import FAILED, USAGE
from ldm.cli.generate import main
from ldm.cli.info import main as info
from ldm.images import read_parameters, read_settings

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Run:
    """Run the command in a folder with a small model and a picture → (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(folder)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 64, 3), np.uint8)).save("a.png")

    def call(*argv: str) -> tuple[int, str]:
        try:
            code = main(["--model", "model", "--steps", "2", "--seed", "1", *argv])
        except SystemExit as wrong_usage:
            code = int(str(wrong_usage.code))
        return code, capsys.readouterr().err

    return call


def pixels(path: str) -> Any:
    return np.asarray(Image.open(path)).astype(int)


REFERENCE = ("--reference-image", "a.png")


def test_a_reference_is_recorded_and_drawn_again(run: Run, capsys: Any) -> None:
    more = ("--reference-fidelity", "0.25", "--reference-mode", "attention+adain")
    assert run("a cat", *REFERENCE, *more, "-o", "b.png")[0] == 0
    assert run("a cat", "-o", "plain.png")[0] == 0
    assert np.abs(pixels("b.png") - pixels("plain.png")).mean() > 1
    settings = read_settings(Path("b.png"))
    assert settings["arguments"]["reference_fidelity"] == 0.25
    assert settings["arguments"]["reference_mode"] == "attention+adain"
    assert set(settings["images"]) == {"reference_image"}
    text = read_parameters(Path("b.png"))
    assert "ControlNet 0: " in text and "Module: reference_adain+attn, Model: None" in text
    assert "Threshold A: 0.25" in text
    code, message = run("--from", "b.png", "-o", "c.png")
    assert code == USAGE
    assert "give that with --reference-image" in message
    assert run("--from", "b.png", *REFERENCE, "-o", "c.png")[0] == 0
    assert (pixels("b.png") == pixels("c.png")).all()
    Image.new("RGB", (40, 40), "red").save("other.png")
    code, message = run("--from", "b.png", "--reference-image", "other.png", "-o", "d.png")
    assert code == 0 and "from another --reference-image than other.png" in message
    capsys.readouterr()
    assert info(["b.png"]) == 0
    assert "--reference-image FILE" in capsys.readouterr().out


def test_a_style_aligned_batch_is_recorded_and_drawn_again(run: Run, capsys: Any) -> None:
    assert run("a cat", "a car", "--style-aligned", "-o", "out/")[0] == 0
    first, second = sorted(Path("out").iterdir(), key=lambda path: "car" in path.name)
    assert run("a car", "--seed", "2", "-o", "plain.png")[0] == 0
    assert np.abs(pixels(str(second)) - pixels("plain.png")).mean() > 1
    assert read_settings(second)["batch_prompts"] == ["a cat", "a car"]
    for path in (first, second):
        again = ["--from", str(path), "--model", "model", "-o", "again.png", "--force"]
        assert main(again) == 0
        assert (pixels("again.png") == pixels(str(path))).all()
    capsys.readouterr()
    assert info([str(second)]) == 0
    shown = capsys.readouterr().out
    assert "batch prompts" in shown and "ldm generate --from" in shown
    assert "--style-aligned" not in shown  # alone, it would draw another picture
    assert run("--from", str(second), "--steps", "3", "-o", "more.png")[0] == 0
    assert read_settings(Path("more.png"))["batch_prompts"] == ["a cat", "a car"]
    code, message = run("--from", str(second), "a dog", "-o", "dog.png")
    assert code == 0 and "in the style of another picture, without which" in message


def test_files_of_prompts(run: Run) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "a cat", "reference_image": "a.png", "reference_fidelity": 1, "output": "1.png"},
        {"prompt": "a cat", "output": "2.png"},
        {"prompt": "a car", "style_aligned": True, "num_images": 2, "output": "3.png"},
        {"prompt": "a car", "style_aligned": True, "num_images": 9, "output": "4.png"},
        {"prompt": "a car", "reference_fidelity": 0.3},
        {"prompt": "a car", "reference_image": "no.png"},
    ]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, message = run("--prompts", "p.jsonl")
    assert code == FAILED
    for wanted in (
        "p.jsonl:4: --style-aligned draws all pictures in one batch; for these 9 give --batch-",
        "p.jsonl:5: --reference-fidelity is of a --reference-image",
        "p.jsonl:6: no.png does not exist",
    ):
        assert wanted in message
    assert read_settings(Path("3-2.png"))["batch"] == [2, 1]
    assert "reference_image" not in read_settings(Path("2.png")).get("images", {})
    assert read_settings(Path("1.png"))["arguments"]["reference_fidelity"] == 1


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--reference-fidelity", "0.3"), USAGE, "--reference-fidelity is of a --reference-image"),
        (("--reference-mode", "adain"), USAGE, "--reference-mode is of a --reference-image"),
        ((*REFERENCE, "--reference-mode", "x"), USAGE, "expected 'attention', 'adain' or 'atten"),
        ((*REFERENCE, "--reference-fidelity", "2"), USAGE, "reference_fidelity is 2.0; it must be"),
        ((*REFERENCE, "--style-aligned"), USAGE, "both share self-attention; leave one out"),
        (("--reference-image", "no.png"), FAILED, "no.png does not exist"),
        (("--reference-image", ""), USAGE, "it is empty; give a value"),
        (("--style-aligned", "-b", "9"), USAGE, "for these 9 give --batch-size 9"),
        (("--style-aligned", "--x", "steps=1,2"), USAGE, "--x and --y draw each picture alone"),
    ],
)
def test_wrong_options(run: Run, argv: tuple[str, ...], code: int, message: str) -> None:
    found, shown = run("a cat", *argv, "-o", "b.png")
    assert (found, message in shown) == (code, True), shown
    assert not Path("b.png").exists()
