"""``ldm-generate``, ``ldm-info`` and ``ldm-convert`` on models of pixels, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.cli import convert, generate, info
from ldm.images import read_parameters, read_settings
from tests.classes.test_guidance import judged
from tests.classes.test_labels import pipeline


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders "plain", "classes" and "judged"."""
    folder = tmp_path_factory.mktemp("models")
    pipeline(None, labels=None).save_pretrained(folder / "plain")
    pipeline(11).save_pretrained(folder / "classes")
    judged(11).save_pretrained(folder / "judged")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(model: Path, *options: str, steps: int = 3) -> int:
    seeded = ("--steps", str(steps), "--seed", "3", "--quiet")
    return generate.main(["--model", str(model), *seeded, *options])


def array(name: str) -> np.ndarray:
    return np.asarray(Image.open(name))


def test_a_class(models: Path) -> None:
    assert run(models / "classes", "seven") == 0
    assert Image.open("seven-3.png").mode == "L"
    assert array("seven-3.png").shape == (8, 8)
    assert "CFG scale: 4, Seed: 3, Size: 8x8" in read_parameters("seven-3.png")
    assert run(models / "classes", "7", "-o", "7.png") == 0
    assert (array("7.png") == array("seven-3.png")).all()
    assert run(models / "classes", "eight", "-o", "8.png") == 0
    assert (array("8.png") != array("7.png")).any()
    assert run(models / "classes", "-o", "none.png") == 0


@pytest.mark.parametrize("options", [("",), ("seven",), ("2", "--classifier-scale", "9")])
def test_again_from_a_picture(models: Path, options: tuple[str, ...]) -> None:
    model = models / "judged"
    assert run(model, *options, "-o", "a.png") == 0
    arguments = read_settings("a.png")["arguments"]
    want = 9.0 if len(options) == 3 else 1.0 if options[0] else None
    assert arguments.get("classifier_scale") == want
    assert generate.main(["--from", "a.png", "--model", str(model), "-o", "b.png", "--quiet"]) == 0
    assert (array("a.png") == array("b.png")).all()


def test_many(models: Path) -> None:
    digits = ["one", "two", "three", ""]
    assert run(models / "classes", *digits, "--grid", "-o", "grid.png") == 0
    assert Image.open("grid.png").mode == "RGB"
    Path("prompts.jsonl").write_text(
        json.dumps({"prompt": "one", "classifier_scale": 5}) + '\n{"prompt": "two"}\n'
    )
    assert run(models / "judged", "--prompts", "prompts.jsonl", "-o", "p.png") == 0
    assert Path("p-2.png").exists()
    assert run(models / "judged", "one", "--x", "classifier_scale=0,9", "-o", "plot.png") == 0


@pytest.mark.parametrize("end", ["png", "webp"])
def test_what_stands_beside(models: Path, end: str) -> None:
    shown = ("--save-steps", "--animation", end)
    assert run(models / "classes", "one", *shown, "-o", "one.png") == 0
    assert Image.open(f"one-animation.{end}").n_frames >= 3
    assert Path("one-steps.png").exists()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_from_an_image(models: Path, picture: Image.Image, suffix: str) -> None:
    picture.save("in.png")
    options = ("--image", "in.png", "-W", "13", "-H", "9", "--strength", "0.7")
    assert run(models / "plain", *options, "-o", f"out{suffix}") == 0
    assert Image.open(f"out{suffix}").size == (13, 9)
    assert run(models / "plain", "--hires-scale", "1.5", "-o", "big.png") == 0
    assert Image.open("big.png").size == (12, 12)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("plain", ("seven",), "prompt is 'seven', but this model reads no text and has no classes"),
        ("plain", ("-g", "3"), "guidance_scale"),
        ("plain", ("--classifier-scale", "1"), "no classifier; leave it out"),
        ("classes", ("sven",), "did you mean 'seven'"),
        ("classes", ("one", "-n", "to"), "negative_prompt is 'to', which is no class"),
        ("classes", ("one", "--explain"), "this model reads no text"),
        ("classes", ("one", "--embedding", "x.bin"), "this model reads no text"),
        ("classes", ("one", "--clip-skip", "2"), "this model reads no text"),
        ("classes", ("one", "--vae", "x"), "draws pixels and has no VAE"),
        ("judged", ("--classifier-scale", "3"), "a prompt is empty; give a class to push towards"),
        ("judged", ("one", "-W", "16"), "the size is 16x8, but the classifier knows 8x8 only"),
    ],
)
def test_wrong_arguments(
    models: Path,
    model: str,
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(models / model, *options) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_info(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main([str(models / "judged")]) == 0
    told = capsys.readouterr().out
    assert "kind             DDPMPipeline" in told
    assert "classes          10: zero, one, two, three, four, five, six, seven, …" in told
    assert "classifier       0.0M parameters, float32" in told


def test_convert(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main([str(models / "judged"), "copy", "--dtype", "float16"]) == 0
    assert run(Path("copy"), "seven", "-o", "copy.png") == 0
    assert run(models / "judged", "seven", "-o", "it.png") == 0
    assert np.abs(array("copy.png") - array("it.png").astype(int)).max() <= 3
    assert convert.main([str(models / "judged"), "one.safetensors"]) == 1
    assert "draws pixels" in capsys.readouterr().err
    assert not list(Path().glob("*.part"))
