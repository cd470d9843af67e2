"""Masks, canvas, passes, tiles and variations of ``ldm-generate``, as a user types them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.cli import generate
from ldm.images import read_parameters


@pytest.fixture(autouse=True)
def files(tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture.save("picture.png")
    mask = Image.new("L", picture.size)
    mask.paste(255, (16, 8, 40, 24))
    mask.save("mask.png")


def run(folder: Path, *options: str) -> int:
    return generate.main(["a", "--model", str(folder), "--steps", "2", "--seed", "3", *options])


def array(name: str) -> np.ndarray:
    return np.asarray(Image.open(name))


def settings(name: str) -> str:
    return read_parameters(name).splitlines()[-1]


def test_a_mask(folder: Path) -> None:
    options = ("--image", "picture.png", "--mask", "mask.png", "-o", "out.png")
    assert run(folder, *options, "--mask-blur", "0") == 0
    kept = array("mask.png") == 0
    assert (array("out.png")[kept] == array("picture.png")[kept]).all()
    assert (array("out.png")[~kept] != array("picture.png")[~kept]).any()
    assert "Denoising strength: 1, " in settings("out.png")
    assert "Mask blur: 0" in settings("out.png")
    assert run(folder, *options, "--no-paste-back", "--force") == 0
    assert (array("out.png")[kept] != array("picture.png")[kept]).any()


def test_outpainting(folder: Path) -> None:
    options = ("--image", "picture.png", "--mask-blur", "0", "-o", "out.png")
    assert run(folder, *options, "--outpaint", "8,0,16,8") == 0
    assert array("out.png").shape == (48, 88, 3)
    assert (array("out.png")[:40, 8:72] == array("picture.png")).all()


def test_two_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--hires-scale", "1.5", "-W", "40", "-H", "24", "-o", "out.png") == 0
    assert array("out.png").shape == (40, 64, 3)
    assert "2 steps, then 1 at 1.5 times the size" in capsys.readouterr().err
    told = settings("out.png")
    assert "Hires upscale: 1.5, Hires upscaler: Lanczos, Denoising strength: 0.5" in told


def test_a_size_that_the_model_does_not_know(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for options in (
        ["-W", "128", "-H", "64"],
        ["-W", "136", "-H", "64"],
        ["-W", "32", "-H", "56"],
        ["-W", "136", "-H", "64", "--hires-scale", "1"],
        ["-W", "136", "-H", "64", "--image", "picture.png"],
    ):
        two = ("--num-images", "2", "--batch-size", "1", "--force")
        assert run(folder, *options, *two, "-o", "out.png") == 0
        lines = capsys.readouterr().err.splitlines()
        told.append([line for line in lines if "is far from the 64x64" in line])
    assert [len(lines) for lines in told] == [0, 1, 1, 0, 0]
    assert told[1][0].startswith("136x64 is far") and "--hires-scale" in told[1][0]
    assert "expect a part" in told[2][0]


def test_variations(folder: Path) -> None:
    options = ("--variation-seed", "8", "--variation-strength", "0.3")
    assert run(folder, *options, "--num-images", "3", "--batch-size", "2") == 0
    names = [f"a-3-{seed}.png" for seed in (8, 9, 10)]
    assert sorted(path.name for path in Path().glob("a-*.png")) == sorted(names)
    assert run(folder, "--variation-seed", "10", *options[2:], "-o", "one.png") == 0
    assert (array("one.png") == array(names[2])).all()
    assert (array(names[0]) != array(names[1])).any()
    assert "Seed: 3, " in settings(names[2])
    assert "Variation seed: 10, Variation seed strength: 0.3" in settings(names[2])


def test_tiles_and_guidance(folder: Path) -> None:
    assert run(folder, "-o", "plain.png") == 0
    for i, options in enumerate(
        (["--tiling"], ["--guidance-rescale", "0.7"], ["--guidance-interval", "0.1,3"])
    ):
        assert run(folder, *options, "-o", f"{i}.png") == 0
        assert (array(f"{i}.png") != array("plain.png")).any()
    assert "Tiling: True" in settings("0.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mask mask.png", "--mask says what to do with an --image"),
        ("--outpaint 8", "--outpaint says what to do with an --image"),
        ("--image picture.png --mask mask.png --outpaint 8", "give one of them"),
        ("--image picture.png --outpaint 1,2", "--outpaint: it is '1,2'"),
        ("--image picture.png --outpaint x", "invalid margins value: 'x'"),
        ("--image picture.png --outpaint 0", "all margins are 0"),
        ("--image picture.png --hires-scale 2", "leave --image out"),
        ("--hires-strength 0.2", "give --hires-scale, too"),
        ("--hires-scale 9", "hires_scale is 9.0; it must be in [1, 8]"),
        ("--variation-seed 3", "need each other"),
        ("--variation-seed 3 --variation-strength 2", "variation_strength is 2"),
        ("--guidance-interval 3", "it is '3'; give two levels"),
        ("--guidance-interval 3,1", "guidance_interval is 3.0 to 1.0"),
        ("--guidance-rescale 3", "guidance_rescale is 3.0"),
    ],
)
def test_options_that_do_not_work(
    folder: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run(folder, *options.split())
    except SystemExit as left:
        code = left.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert not list(Path().glob("a-*.png"))


def test_a_mask_that_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--image", "picture.png", "--mask", "none.png") == 1
    assert "none.png" in capsys.readouterr().err
