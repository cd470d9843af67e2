"""Models that edit and models of depth, as a user types them: pictures, records, errors."""

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
from ldm.images import read_parameters, read_settings
from ldm.images.metadata import parse_parameters

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small model."""
    from tests.helpers.families import FAMILIES

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            FAMILIES[name]().save_pretrained(made[name])
        return made[name]

    return get


@pytest.fixture
def run(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Run:
    """Run the command with a model, in a folder with pictures → (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 64, 3), np.uint8)).save("start.png")
    Image.fromarray(rng.integers(0, 65536, (40, 64), np.uint16)).save("depth.png")
    Image.fromarray(rng.integers(0, 65536, (40, 64), np.uint16)).save("other.png")
    Image.fromarray(rng.integers(0, 256, (64, 40), np.uint8)).save("tall.png")

    def call(model: str, *argv: str) -> tuple[int, str]:
        options = ["--model", str(saved(model)), "--steps", "2", "--seed", "1"]
        try:
            code = main([*options, *argv])
        except SystemExit as wrong_usage:
            code = int(str(wrong_usage.code))
        return code, capsys.readouterr().err

    return call


def pixels(path: str) -> bytes:
    return Image.open(path).tobytes()


def test_an_edit(run: Run, saved: Any) -> None:
    from ldm import Pipeline

    code, err = run("pix2pix", "make it red", "--image", "start.png", "-o", "a.png")
    assert code == 0
    assert "64x40, strength 1: 2 of 2 steps" in err
    pipe = Pipeline.from_pretrained(saved("pix2pix")).optimize()
    want = pipe("make it red", image="start.png", seed=1, num_inference_steps=2).images[0]
    assert pixels("a.png") == want.tobytes()
    text = parse_parameters(str(read_parameters("a.png")))
    assert (text["Image CFG scale"], text["Denoising strength"]) == ("1.5", "1")
    scale = ["--image", "start.png", "--image-guidance-scale", "2.5"]
    assert run("pix2pix", "make it red", *scale, "-o", "b.png")[0] == 0
    assert pixels("b.png") != pixels("a.png")
    assert parse_parameters(str(read_parameters("b.png")))["Image CFG scale"] == "2.5"
    for name in "ab":  # drawn again, to the bit
        code, err = run(
            "pix2pix", "--from", f"{name}.png", "--image", "start.png", "-o", f"{name}2.png"
        )
        assert (code, "warning" in err) == (0, False)
        assert pixels(f"{name}2.png") == pixels(f"{name}.png")


def test_a_picture_to_a_depth(run: Run) -> None:
    both = ["--image", "start.png", "--depth-map", "depth.png"]
    code, err = run("depth", "a red car", *both, "-o", "a.png")
    assert code == 0
    assert "strength 0.8: 1 of 2 steps" in err
    assert run("depth", "a red car", *both[:3], "other.png", "-o", "b.png")[0] == 0
    assert pixels("a.png") != pixels("b.png")
    settings: dict[str, Any] = read_settings("a.png") or {}
    assert set(settings["images"]) == {"image", "depth_map"}
    code, err = run("depth", "--from", "a.png", *both, "-o", "a2.png")
    assert (code, "warning" in err) == (0, False)
    assert pixels("a2.png") == pixels("a.png")
    code, err = run("depth", "--from", "a.png", *both[:3], "other.png", "-o", "a3.png")
    assert "was drawn from another --depth-map than other.png" in err
    code, err = run("depth", "--from", "a.png", *both[:2], "-o", "a4.png")
    assert code != 0
    assert "give that with --depth-map" in err


def test_lines_of_a_file(run: Run) -> None:
    lines = [
        {"prompt": "red", "image": "start.png", "image_guidance_scale": 2},
        {"prompt": "blue", "image": "start.png"},
        {"prompt": "green"},
    ]
    Path("all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, err = run("pix2pix", "--prompts", "all.jsonl", "-o", "x.png")
    assert code == FAILED
    assert "all.jsonl:3: this model edits an image as the text says; give image" in err
    for number, scale in ((1, "2"), (2, "1.5")):
        text = parse_parameters(str(read_parameters(f"x-{number}.png")))
        assert text["Image CFG scale"] == scale


@pytest.mark.parametrize(
    ("model", "argv", "message"),
    [
        ("pix2pix", [], "this model edits an image as the text says; give image"),
        ("pix2pix", ["-i", "start.png", "--mask", "start.png"], "edits the whole image; leave"),
        ("pix2pix", ["--image-guidance-scale", "2"], "--image-guidance-scale says what to do with"),
        (
            "pix2pix",
            ["-i", "start.png", "--image-guidance-scale", "nan"],
            "image_guidance_scale is",
        ),
        ("pix2pix", ["-i", "start.png", "--image-guidance-scale", "much"], "invalid float value"),
        (
            "pix2pix",
            ["-i", "start.png", "--depth-map", "depth.png"],
            "reads no depth; leave it out",
        ),
        ("sd", ["-i", "start.png", "--image-guidance-scale", "2"], "does not edit by instruct"),
        ("depth", ["-i", "start.png"], "ldm has no depth estimator"),
        ("depth", ["--depth-map", "depth.png"], "--depth-map says what to do with an --image"),
        (
            "depth",
            ["-i", "start.png", "--depth-map", "tall.png"],
            "is 40x64, of another shape than",
        ),
        ("depth", ["-i", "start.png", "--depth-map", "start.png"], "it is in colours; a depth map"),
        ("depth", ["-i", "start.png", "--depth-map", "no.png"], "no.png does not exist"),
        ("depth", ["-i", "start.png", "--depth-map", ""], "it is empty"),
    ],
)
def test_wrong_calls(run: Run, model: str, argv: list[str], message: str) -> None:
    code, err = run(model, "a red car", *argv, "-o", "a.png")
    assert code in (FAILED, USAGE)
    assert message in err
    assert err.count("error:") <= 1
    assert not Path("a.png").exists()
