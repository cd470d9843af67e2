"""Upscalers by name: the built-in ones, and models in folders as A1111 and ComfyUI have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.config.upscalers import BUILT_IN, find_built_in, upscaler_label, upscaler_name
from ldm.errors import ArgumentError
from ldm.upscaling import find_upscaler, list_upscalers, load_upscaler
from ldm.upscaling.folder import name_scale


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "ESRGAN/4x-UltraSharp.pth",
        "ESRGAN/4x-UltraSharp.safetensors",
        "RealESRGAN/RealESRGAN_x4plus.pth",
        "upscale_models/deep/2xNomos.safetensors",
        "upscale_models/notes.txt",
        "Stable-diffusion/dreamshaper.safetensors",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_the_models_of_a_folder(folder: Path) -> None:
    found = [one for one in list_upscalers(folder) if one.path]
    assert [(one.name, one.scale, one.path.suffix) for one in found] == [
        ("2xNomos", 2, ".safetensors"),
        ("4x-UltraSharp", 4, ".safetensors"),
        ("4x-UltraSharp", 4, ".pth"),
        ("RealESRGAN_x4plus", 4, ".pth"),
    ]
    assert [one.name for one in list_upscalers(folder / "ESRGAN")][-2:] == ["4x-UltraSharp"] * 2
    built_in = list_upscalers()
    assert [one.name for one in built_in] == [one.label for one in BUILT_IN.values()]
    assert sum(one.latent for one in built_in) == 6
    with pytest.raises(ArgumentError, match="is no folder"):
        list_upscalers(folder / "none")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("4x-UltraSharp", "ESRGAN/4x-UltraSharp.safetensors"),
        ("4x-ultrasharp", "ESRGAN/4x-UltraSharp.safetensors"),
        ("4x-UltraSharp.pth", "ESRGAN/4x-UltraSharp.pth"),
        ("R-ESRGAN 4x+", "RealESRGAN/RealESRGAN_x4plus.pth"),
        ("2xNomos", "upscale_models/deep/2xNomos.safetensors"),
    ],
)
def test_a_models_names(folder: Path, name: str, file: str) -> None:
    assert find_upscaler(name, folder) == folder / file
    assert find_upscaler(str(folder / file)) == folder / file


@pytest.mark.parametrize("one", BUILT_IN.values(), ids=lambda one: one.name)
def test_the_spellings_of_a_name(one: object) -> None:
    for text in (one.name, one.label, one.label.upper(), one.name.replace("_", "-")):
        assert find_built_in(text) is one
        assert upscaler_name(text) == one.name and upscaler_label(text) == one.label
    assert find_built_in(f"./{one.name}") is None


def test_names_for_metadata() -> None:
    for path in ("/m/ESRGAN/4x-UltraSharp.pth", r"m\4x-UltraSharp.safetensors", "4x-UltraSharp"):
        assert upscaler_name(path) == upscaler_label(path) == "4x-UltraSharp"
    assert upscaler_name(Path("a/4x.5.pth")) == "4x.5"
    assert find_upscaler("None") is BUILT_IN["lanczos"]


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("4x-UltraSharp", 4),
        ("4xNomos8kSC", 4),
        ("RealESRGAN_x2plus", 2),
        ("realesr-general-x4v3", 4),
        ("DAT_x3", 3),
        ("003_realSR_BSRGAN_SwinIR-L_x4_GAN", 4),
        ("foolhardy_Remacri", None),
        ("model-512x512", None),
        ("max4", None),
    ],
)
def test_the_scale_in_a_name(name: str, scale: int | None) -> None:
    assert name_scale(name) == scale


def test_unknown_names(folder: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        find_upscaler("4x-UltraShrp", folder)
    assert "'4x-UltraShrp' is no upscaler and no file; did you mean '4x-UltraSharp'" in str(
        caught.value
    )
    with pytest.raises(ArgumentError, match="'x' is no upscaler and no file; give the path"):
        find_upscaler("x")
    with pytest.raises(ArgumentError, match=r"Latent enlarges latents between two passes.*Lanczos"):
        load_upscaler("Latent")


@pytest.mark.parametrize("name", ["lanczos", "nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_filters_are_pillows(name: str, mode: str, picture: Image.Image) -> None:
    image = picture.convert(mode)
    want = image.resize((90, 70), getattr(Image.Resampling, name.upper()))
    got = load_upscaler(name)(image, 90, 70)
    assert got.mode == mode and np.array_equal(np.asarray(got), np.asarray(want))
    with pytest.raises(ArgumentError, match="height is -1"):
        load_upscaler(name)(image, 9, -1)
