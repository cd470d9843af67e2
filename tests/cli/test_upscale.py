"""``ldm upscale``, as a user types it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.cli import streams
from ldm.cli.main import main
from ldm.images import read_parameters, save_image
from ldm.images.generation_info import read_generation_info
from ldm.upscaling import load_upscaler
from ldm.upscaling.metadata import postprocess_text
from tests.helpers.upscalers import write_upscaler

TEXT = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x40"
DONE = "Postprocess upscale by: 2, Postprocess upscaler: 2x-Tiny"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_upscaler(folder / "ESRGAN" / "2x-Tiny.safetensors")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_image(picture, "car.png", TEXT)


def call(*argv: str) -> int:
    try:
        return main(["upscale", *argv])
    except SystemExit as stop:
        return int(stop.code or 0)


def array(name: str) -> np.ndarray:
    return np.asarray(Image.open(name))


def test_a_model(models: Path, picture: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "2x-tiny", "--model-dir", str(models)]
    assert call("car.png", *options) == 0
    out, err = capsys.readouterr()
    assert out == "car-2x.png\n" and err.startswith("car.png: 64x40 to 128x80 by 2x-Tiny, ")
    want = load_upscaler("2x-Tiny", models, "cpu")(picture, 128, 80)
    assert (array("car-2x.png") == np.asarray(want)).all()
    assert read_parameters("car-2x.png") == f"{TEXT}, {DONE}"
    assert Image.open("car-2x.png").info["extras"] == DONE
    info = read_generation_info("car-2x.png")
    assert info.arguments["seed"] == 1
    assert info.notes[-2:] == ("Postprocess upscale by 2", "Postprocess upscaler 2x-Tiny")
    # Made names take a free number; nothing is overwritten.
    assert call("car.png", *options, "-q", "--scale", "2") == 0
    assert capsys.readouterr() == ("car-2x-2.png\n", "")


def test_filters_and_names(picture: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    picture.save("b.jpg")
    assert call("car.png", "b.jpg", "-x", "1.5", "--model", "Bicubic", "-o", "out/", "-q") == 0
    want = picture.resize((96, 60), Image.Resampling.BICUBIC)
    assert (array("out/car-1.5x.png") == np.asarray(want)).all()
    assert call("car.png", "b.jpg", "-o", "large.webp", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row.pop("seconds") >= 0 for row in rows] == [True, True]
    assert rows[1] == {
        "path": "large-2.webp", "source": "b.jpg", "width": 128, "height": 80,
        "upscaler": "Lanczos", "scale": 2.0,
    }  # fmt: skip
    done = "Postprocess upscale by: 2, Postprocess upscaler: Lanczos"
    assert read_parameters("large-1.webp") == f"{TEXT}, {done}"
    assert read_parameters("large-2.webp") == done
    # A given name is never overwritten, which is found before a model is loaded.
    before = Path("large-1.webp").read_bytes()
    assert call("car.png", "-o", "large-1.webp", "--model", "none.pth") == 1
    assert "large-1.webp already exists" in capsys.readouterr().err
    assert Path("large-1.webp").read_bytes() == before


def test_all_that_a_file_says_is_kept(picture: Image.Image) -> None:
    """Other programs' chunks, colour profiles, our exact settings; also of the second time."""
    info = PngInfo()
    info.add_text("workflow", '{"nodes": []}')
    info.add_text("ldm", json.dumps({"ldm": "1", "arguments": {"seed": 3, "prompt": "a"}}))
    info.add_text("Title", "日本")
    picture.save("x.png", pnginfo=info, icc_profile=b"profile")
    assert call("x.png") == 0
    assert call("x-2x.png", "-x", "3") == 0
    found = Image.open("x-2x-3x.png").info
    assert (found["workflow"], found["Title"]) == ('{"nodes": []}', "日本")
    assert found["icc_profile"] == b"profile"
    twice = [postprocess_text(scale, "Lanczos") for scale in (2, 3)]
    assert json.loads(found["ldm"]) == {
        "ldm": "1", "arguments": {"seed": 3, "prompt": "a"}, "postprocess": ", ".join(twice),
    }  # fmt: skip
    assert found["extras"] == twice[1]
    assert read_generation_info("x-2x-3x.png").notes == (", ".join(twice),)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_grey_and_transparent_pictures(models: Path, picture: Image.Image, mode: str) -> None:
    picture.convert(mode).save("grey.png")
    assert call("grey.png", "-m", str(models / "ESRGAN/2x-Tiny.safetensors")) == 0
    assert Image.open("grey-2x.png").mode == mode


class Pipe:
    """Standard input or output that is a pipe."""

    def __init__(self, content: bytes = b"") -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise OSError

    def flush(self) -> None:
        pass


def test_pipes(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Pipe()
    monkeypatch.setattr(sys, "stdin", Pipe(Path("car.png").read_bytes()))
    monkeypatch.setattr(sys, "stdout", out)
    streams.forget()
    assert call("-", "-o", "-") == 0
    large = Image.open(io.BytesIO(out.buffer.getvalue()))
    assert large.size == (128, 80) and large.info["parameters"].startswith(TEXT)
    streams.forget()


def test_listing(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--list-models", "--model-dir", str(models)) == 0
    names = ["Lanczos", "Nearest", "Bilinear", "Bicubic", "2x-Tiny"]
    assert capsys.readouterr().out.splitlines() == names


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        ([], "there is no picture; give one: ldm upscale picture.png", 2),
        (["none.png"], "none.png does not exist", 1),
        (["bad.png"], "bad.png is not an image", 1),
        (["car.png", "-x", "0"], "--scale is 0; it must be in [1, 16]", 2),
        (["car.png", "-x", "nan"], "--scale is nan; it must be in [1, 16]", 2),
        (["car.png", "-m", "4x"], "--model: '4x' is no upscaler and no file", 2),
        (["car.png", "-m", "latent"], "--model: Latent enlarges latents between two passes", 2),
        (["car.png", "-m", "bad.png"], "bad.png", 1),
        (["car.png", "-o", "x.bmp"], "x.bmp does not end in a known format", 1),
        (["car.png", "-o", "no/x.png"], "no is not a folder; create it", 1),
        (["car.png", "-o", "{prompt}.png"], "no {…} is filled in here; give a name", 2),
        (["car.png", "car.png", "-o", "-"], "--output - writes one picture to stdout", 2),
        (["-", "-"], "standard input is one picture; give - once", 2),
        (["car.png", "--device", "moon"], "device is 'moon', which does not work here", 2),
        (["alpha.png", "-o", "x.jpg"], "cannot write x.jpg", 1),
        (["car.png", "--model-dir", "no", "-m", "4x"], "'no' is no folder", 2),
    ],
)
def test_what_does_not_work(
    models: Path,
    picture: Image.Image,
    options: list[str],
    message: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("bad.png").write_text("no picture")
    picture.convert("RGBA").save("alpha.png")
    if "--device" in options:
        options = [*options, "-m", str(models / "ESRGAN/2x-Tiny.safetensors")]
    there = sorted(Path().iterdir())
    assert call(*options) == code
    err = capsys.readouterr().err
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(Path().iterdir()) == there


def test_one_bad_picture_stops_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.png").write_text("no picture")
    assert call("bad.png", "car.png") == 1
    out, err = capsys.readouterr()
    assert out == "car-2x.png\n"
    assert "bad.png is not an image" in err and "1 of 2 pictures were not enlarged" in err


def test_a_full_disk_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert call("car.png") == 1
    assert "cannot write car-2x.png: No space left on device" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["car.png"]
