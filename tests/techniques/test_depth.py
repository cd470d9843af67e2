"""Pictures drawn to a depth map (SD 2 depth): diffusers' pictures, maps of all kinds, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import ArgumentError, ImageError
from ldm.images.depth import load_depth, read_depth
from tests.helpers.pictures import assert_same, draw, draw_theirs, generator, quiet

RAMP = np.linspace(0, 1, 64 * 40, dtype=np.float32).reshape(40, 64)
EIGHT = np.rint(RAMP * 255).astype(np.uint8)


@pytest.fixture
def small(picture: Image.Image) -> Image.Image:
    return picture.resize((64, 40))


@pytest.mark.parity
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("size", [(40, 64), (20, 32), (120, 192)])
def test_same_as_diffusers(
    models: Any, small: Image.Image, strength: float, guidance: float, size: tuple[int, int]
) -> None:
    ours, theirs = models("depth")
    arguments: dict[str, Any] = {
        "num_inference_steps": 4,
        "guidance_scale": guidance,
        "image": small,
        "strength": strength,
        "depth_map": torch.rand(1, *size, generator=generator(1)) * 7 - 3,
    }
    want = draw_theirs(quiet(theirs), generator=generator(3), **arguments)
    assert_same(draw(ours, seed=3, **arguments), want)


@pytest.mark.parity
def test_maps_of_a_batch_are_diffusers(models: Any, small: Image.Image) -> None:
    ours, theirs = models("depth")
    arguments: dict[str, Any] = {
        "num_inference_steps": 3,
        "image": [small, small.rotate(180)],
        "depth_map": torch.rand(2, 40, 64, generator=generator(1)),
        "negative_prompt": ["blurry", "dark"],
    }
    prompts = ["a red car", "two"]
    want = draw_theirs(quiet(theirs), prompts, generator=generator(3), **arguments)
    assert_same(draw(ours, prompts, generator=generator(3), **arguments), want)


KINDS: dict[str, Any] = {
    "8 bits": lambda: Image.fromarray(EIGHT),
    "16 bits": lambda: Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16)),
    "32 bits": lambda: Image.fromarray(np.rint(RAMP * 2**24).astype(np.int32)),
    "float": lambda: Image.fromarray(RAMP * 3 - 9),
    "grey in colours": lambda: Image.fromarray(EIGHT).convert("RGB"),
    "opaque": lambda: Image.fromarray(EIGHT).convert("RGBA"),
    "grey, opaque": lambda: Image.fromarray(EIGHT).convert("LA"),
    "palette": lambda: Image.fromarray(EIGHT).convert("P"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_is_the_same_map(kind: str) -> None:
    """Only the order and the proportions of the values count."""
    want = read_depth(torch.from_numpy(RAMP), 1, 1, (40, 64), 8)
    assert want.shape == (1, 1, 5, 8)
    assert (want.min(), want.max()) == (-1, 1)
    got = read_depth(KINDS[kind](), 1, 1, (40, 64), 8)
    assert (got - want).abs().max() < 2 / 255


def test_files_of_16_bits_and_jpeg(tmp_path: Path) -> None:
    want = read_depth(torch.from_numpy(RAMP), 1, 1, (40, 64), 8)
    KINDS["16 bits"]().save(tmp_path / "a.png")
    KINDS["float"]().save(tmp_path / "a.tif")
    KINDS["grey in colours"]().save(tmp_path / "a.jpg", quality=90)
    for name, error in (("a.png", 1e-4), ("a.tif", 1e-5), ("a.jpg", 0.03)):
        got = read_depth(str(tmp_path / name), 1, 1, (40, 64), 8)
        assert (got - want).abs().max() < error


def coloured() -> Image.Image:
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = EIGHT, 255 - EIGHT
    return Image.fromarray(pixels)


def with_hole() -> Image.Image:
    picture = Image.fromarray(EIGHT).convert("LA")
    picture.putalpha(Image.fromarray(np.where(EIGHT > 99, np.uint8(255), np.uint8(0))))
    return picture


WRONG: dict[str, tuple[Any, str]] = {
    "colours": (coloured, "it is in colours; a depth map is grey, and near is bright"),
    "a hole": (with_hole, "it has transparent parts"),
    "another shape": (lambda: Image.fromarray(EIGHT.T.copy()), "40x64, of another shape than"),
    "flat": (lambda: Image.new("L", (64, 40), 7), "depth_map is 7 everywhere"),
    "NaN": (lambda: Image.fromarray(np.full((40, 64), np.nan, np.float32)), "NaN or infinite"),
    "no file": (lambda: "nowhere.png", "nowhere.png does not exist"),
    "a number": (lambda: 5, "is of the type int; it must be a path"),
    "two for one": (lambda: [Image.fromarray(EIGHT)] * 2, "depth_map holds 2 pictures for 1"),
    "tensor of colours": (lambda: torch.rand(1, 3, 40, 64), r"shape \(1, 3, 40, 64\); expected"),
    "empty tensor": (lambda: torch.rand(0, 40, 64), "without values"),
    "tensor with NaN": (lambda: torch.full((40, 64), float("nan")), "NaN or infinite"),
    "tensor of two": (lambda: torch.rand(2, 40, 64), "holds 2 pictures for 1 prompts"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_maps(models: Any, small: Image.Image, kind: str) -> None:
    ours, _ = models("depth")
    make, message = WRONG[kind]
    with pytest.raises((ArgumentError, ImageError), match=message) as caught:
        ours.stream("a red car", image=small, depth_map=make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [{}, {"image": True}, {"depth_map": True}])
def test_what_is_missing(models: Any, small: Image.Image, given: dict) -> None:
    ours, _ = models("depth")
    arguments = {name: small.convert("L") if name == "depth_map" else small for name in given}
    with pytest.raises(ArgumentError, match=r"give image and depth_map.*no depth estimator"):
        ours.stream("a red car", **arguments)


def test_a_part_of_the_image_is_kept(models: Any, small: Image.Image) -> None:
    """Inpainting to a depth: what the mask keeps is bit-identical."""
    ours, _ = models("depth")
    mask = Image.new("L", small.size)
    mask.paste(255, (32, 0, 64, 40))
    arguments = {"image": small, "depth_map": Image.fromarray(EIGHT), "mask_image": mask}
    image = ours("a red car", **arguments, mask_blur=0, num_inference_steps=2, seed=1).images[0]
    left = (0, 0, 32, 40)
    assert image.crop(left).tobytes() == small.crop(left).tobytes()
    assert image.tobytes() != small.tobytes()


def test_load_depth_keeps_the_values() -> None:
    loaded = load_depth(Image.fromarray(RAMP * 3 - 9))
    assert loaded.mode == "F"
    assert np.array_equal(np.asarray(loaded), RAMP * 3 - 9)
