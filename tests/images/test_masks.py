"""Masks with transparent parts, as paint programs, segmenters and web services make them."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ldm.cli.guidance_options import read_given
from ldm.cli.replay import _digest
from ldm.errors import ArgumentError
from ldm.images import digest, load_image, load_layer
from ldm.images.layers import layer_to_mask
from ldm.images.masks import to_masks
from tests.images.test_images import png

SIDE = 96
INSIDE = (slice(30, 61), slice(30, 61))


def shape(soft: float = 0) -> Image.Image:
    """White where the picture is to be drawn anew."""
    drawn = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(drawn).rectangle([30, 30, 60, 60], fill=255)
    return drawn.filter(ImageFilter.GaussianBlur(soft)) if soft else drawn


def inverse(mask: Image.Image) -> Image.Image:
    return mask.point(lambda value: 255 - value)


def photo(seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def drawing() -> Image.Image:
    """Black lines on white paper, most of which is one colour."""
    paper = Image.new("RGB", (SIDE, SIDE), "white")
    for at in range(4, SIDE, 23):
        ImageDraw.Draw(paper).line([at, 0, at, SIDE], fill="black", width=2)
    return paper


def layer(colour: Image.Image | object, alpha: Image.Image) -> Image.Image:
    base = colour if isinstance(colour, Image.Image) else Image.new("RGB", alpha.size, colour)
    made = base.convert("RGBA")
    made.putalpha(alpha)
    return made


def palette() -> Image.Image:
    """Black, index 0, is transparent."""
    image = shape().point(lambda value: value // 255).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.info["transparency"] = 0
    return image


def premultiplied() -> Image.Image:
    return layer("white", shape(1)).convert("RGBa")


def grey_alpha(mode: str) -> Image.Image:
    return Image.merge("LA", (Image.new("L", (SIDE, SIDE), 255), shape())).convert(mode)


def palette_alpha() -> Image.Image:
    return layer("white", shape()).convert("PA")


def colour_key() -> Image.Image:
    image = Image.merge("RGB", [shape()] * 3)
    image.info["transparency"] = (0, 0, 0)
    return image


def deep(transparent: int) -> Image.Image:
    image = Image.fromarray(np.asarray(shape()).astype(np.uint16) * 257)
    image.info["transparency"] = transparent
    return image


def bits() -> Image.Image:
    image = shape().convert("1")
    image.info["transparency"] = 0
    return image


def colourful() -> Image.Image:
    strokes = Image.new("RGB", (SIDE, SIDE), "red")
    ImageDraw.Draw(strokes).rectangle([30, 30, 60, 45], fill="blue")
    return layer(strokes, shape())


def cut_mask() -> Image.Image:
    """A black and white mask of which only a frame around the white is opaque."""
    frame = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(frame).rectangle([10, 10, 80, 80], fill=255)
    return layer(shape(), frame)


def faint() -> Image.Image:
    return layer("white", shape().point(lambda value: value * 3 // 5))


STROKES = {
    "white": lambda: layer("white", shape()),
    "black": lambda: layer("black", shape()),
    "grey": lambda: layer((128, 128, 128), shape()),
    "red": lambda: layer("red", shape()),
    "white with soft edges": lambda: layer("white", shape(1)),
    "black with soft edges": lambda: layer("black", shape(1)),
    "the same in all channels": lambda: Image.merge("RGBA", [shape(2)] * 4),
    "two colours": colourful,
    "palette": palette,
    "premultiplied": premultiplied,
    "LA": lambda: grey_alpha("LA"),
    "La": lambda: grey_alpha("La"),
    "PA": palette_alpha,
    "colour key": colour_key,
    "16 bit, black is transparent": lambda: deep(0),
    "1 bit, black is transparent": bits,
    "black and white, cut": cut_mask,
    "60 % opaque": faint,
    "opaque": shape,
    "nearly opaque": lambda: layer(shape(), Image.new("L", (SIDE, SIDE), 252)),
    "half opaque": lambda: layer(shape(), Image.new("L", (SIDE, SIDE), 128)),
}


def drawn(mask: Image.Image, picture: Image.Image) -> np.ndarray:
    return np.asarray(to_masks([load_layer(mask)], [picture], SIDE, SIDE)[0, 0]) >= 0.5


@pytest.mark.parametrize("name", STROKES)
def test_strokes_are_drawn_and_what_is_transparent_is_kept(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        marked = drawn(STROKES[name](), photo())
    assert (marked == (np.asarray(shape()) >= 128)).mean() > 0.99
    assert marked[INSIDE].mean() > 0.9


@pytest.mark.parametrize("soft", [0, 2])
@pytest.mark.parametrize("make", [photo, drawing, lambda: Image.new("RGB", (SIDE,) * 2, "teal")])
def test_a_picture_with_a_hole_as_its_own_mask(soft: float, make: object) -> None:
    """The hole is drawn; a soft eraser makes a soft mask."""
    holed = layer(make(), inverse(shape(soft)))
    for picture in (load_image(holed), make()):
        masks = to_masks([load_layer(holed)], [picture], SIDE, SIDE)[0, 0]
        assert np.abs(np.asarray(masks) - np.asarray(shape(soft)) / 255).max() < 1e-6
    larger = holed.resize((3 * SIDE, 3 * SIDE), Image.Resampling.BICUBIC)
    assert (drawn(larger, make()) == (np.asarray(shape(soft)) >= 128)).mean() > 0.97


def test_a_cut_out_as_its_own_mask_draws_what_was_cut_away() -> None:
    marked = drawn(layer(photo(), shape()), photo())
    assert not marked[INSIDE].any() and marked.mean() > 0.8


def test_a_picture_with_a_hole_that_is_not_the_image_is_told_of() -> None:
    for other in (photo(1), Image.new("RGB", (SIDE, SIDE), (200, 60, 60))):
        with pytest.warns(UserWarning, match="mask_image 1 is read as a picture with a hole"):
            marked = drawn(layer(other, inverse(shape())), photo())
        assert (marked == (np.asarray(shape()) >= 128)).all()


def test_strokes_in_the_colour_of_what_they_cover_are_strokes() -> None:
    """White on white paper: nothing but the strokes' own shape tells."""
    marked = drawn(layer("white", shape()), drawing())
    assert (marked == (np.asarray(shape()) >= 128)).all()
    everything_else = drawn(layer("white", inverse(shape())), photo())
    assert (everything_else != (np.asarray(shape()) >= 128)).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (layer("black", inverse(shape())), "one colour along its edge"),
        (layer((128, 128, 128), inverse(shape())), "one colour along its edge"),
        (layer("white", Image.new("L", (SIDE, SIDE))), "transparent everywhere"),
        (Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 128)), "one colour and one transparency"),
        (layer(photo(1), shape()), "parts of another picture"),
        (layer(photo(1).convert("L"), inverse(shape())), "greys and transparent parts"),
    ],
)
def test_what_could_mean_two_things_is_refused(mask: Image.Image, message: str) -> None:
    with pytest.raises(ArgumentError, match=rf"mask_image 1 .*{message}.*; give a mask without"):
        drawn(mask, photo())
    blank = Image.new("RGB", (SIDE, SIDE), "white")
    with pytest.raises(ArgumentError, match="one colour along its edge"):
        drawn(layer("white", inverse(shape())), blank)


def test_each_mask_is_compared_with_its_own_picture() -> None:
    holed = [load_layer(layer(photo(i), inverse(shape()))) for i in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = to_masks(holed, [photo(0), photo(1)], SIDE, SIDE)
        to_masks(holed[:1], [photo(0), photo(1)], SIDE, SIDE)
    assert (np.asarray(masks >= 0.5)[:, 0] == (np.asarray(shape()) >= 128)).all()
    with pytest.warns(UserWarning, match="mask_image 2 is read as"):
        to_masks(holed, [photo(0), photo(0)], SIDE, SIDE)


@pytest.mark.parametrize("mode", sorted({*Image.MODES, "La", "RGBa", "I;16B"} - {"LAB"}))
def test_every_mode_of_pillow(mode: str) -> None:
    """LAB, which has no white of its own, is left out."""
    grey = np.asarray(shape())
    if mode.startswith("I;16"):
        kind = ">u2" if mode.endswith("B") else "<u2"
        mask = Image.frombytes(mode, (SIDE, SIDE), (grey.astype(kind) * 257).astype(kind).tobytes())
    elif mode in ("I", "F"):
        mask = Image.fromarray(grey.astype("i4") * 257 if mode == "I" else grey / np.float32(255))
    elif mode in ("La", "PA", "RGBa"):
        mask = shape().convert("LA" if mode == "La" else "RGBA").convert(mode)
    else:
        mask = shape().convert("RGB").convert(mode)
    assert mask.mode == mode
    assert (drawn(mask, photo()) == (grey >= 128)).all()


def test_files_of_every_depth(tmp_path: Path) -> None:
    grey = np.asarray(shape()).astype(np.uint16) * 257
    alpha = np.stack([np.full_like(grey, 65535)] * 3 + [grey], axis=-1)
    key = struct.pack(">H", 0)
    for name, rows, kind, extra in (("a", alpha, 6, b""), ("b", grey, 0, key)):
        path = png(tmp_path / f"{name}.png", rows, kind, extra)
        assert (drawn(path, photo()) == (grey > 0)).all()
    for suffix in ("png", "webp", "tiff", "gif"):
        path = tmp_path / f"strokes.{suffix}"
        options = {"lossless": True} if suffix == "webp" else {}
        layer("black", shape()).save(path, **options)
        assert (drawn(path, photo()) == (grey > 0)).all(), suffix


def test_the_command_keeps_the_transparency(tmp_path: Path) -> None:
    """Two masks of the same colours are two for the metadata, too; an opaque one is as before."""
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    layer("white", shape()).save(files[0])
    layer("white", shape(2)).save(files[1])
    shape().save(files[2])
    photo().save(tmp_path / "image.png")
    read_given.cache_clear()
    _, mask = read_given(str(tmp_path / "image.png"), files[0], None)
    assert (drawn(mask, photo()) == (np.asarray(shape()) >= 128)).all()
    assert _digest("mask", files[0]) != _digest("mask", files[1])
    assert _digest("mask", files[2]) == digest(load_image(files[2]))


def test_any_layer_is_a_mask_or_refused_in_bounded_time() -> None:
    """Random layers, down to one pixel, raise nothing but ArgumentError."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        height, width = rng.integers(1, 6, 2)
        pixels = rng.choice([0, 1, 128, 254, 255], (height, width, 4)).astype(np.uint8)
        made = load_layer(Image.fromarray(pixels))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                mask = layer_to_mask(made, "mask_image 1", [photo()])
                assert mask.size == made.size and mask.mode in ("L", "RGB")
            except ArgumentError:
                refused += 1
    assert 20 < refused < 300
