"""Pictures → arrays that preprocessors work on → pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.errors import ArgumentError
from ldm.images.files import MAX_PIXELS, MAX_SIDE, load_image, load_layer

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

LIGHT = 200  # of grey levels: such strokes could not be seen on white


def read_rgb(image: Image.Image, contrast: bool = False) -> Bytes:
    """Return the pixels of a picture of any mode: uint8 (H, W, 3).

    contrast: put black behind what is light and transparent, where white would hide it.
    Raises ArgumentError for what is no picture, is empty or too large, ImageError as `load_image`.
    """
    check_picture(image, "image")
    if contrast and (layer := load_layer(image)).mode == "RGBA":
        pixels = np.asarray(layer)
        visible = pixels[..., 3].astype(np.float64)
        grey = np.asarray(layer.convert("RGB").convert("L"))
        light = (grey * visible).sum() > LIGHT * visible.sum()
        ground = Image.new("RGBA", layer.size, "black" if light else "white")
        return np.asarray(Image.alpha_composite(ground, layer).convert("RGB"))
    return np.asarray(load_image(image))


def check_picture(image: Image.Image, name: str) -> None:
    """Raise ArgumentError for what is no PIL image, has no pixel or too many."""
    if not isinstance(image, Image.Image):
        raise ArgumentError(
            f"{name} is of the type {type(image).__name__}; it must be a PIL image: see load_image"
        )
    width, height = image.size
    if not (width and height):
        raise ArgumentError(f"{name} is {width}x{height}, without a pixel")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        scale = min(math.sqrt(MAX_PIXELS / (width * height)), MAX_SIDE / max(width, height))
        smaller = f"({max(1, int(width * scale))}, {max(1, int(height * scale))})"
        raise ArgumentError(
            f"{name} is {width}x{height}; at most {MAX_PIXELS:,} pixels and {MAX_SIDE} a side "
            f"work: use image.resize to the size that you draw, at most {smaller}"
        )


def to_image(values: NDArray[Any], note: str = "") -> Image.Image:
    """Make an RGB picture of (H, W) or (H, W, 3): uint8, floats in [0, 255], or a mask.

    note: what users should know about it; it stands in ``image.info["note"]``.
    """
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype != np.uint8:
        values = np.rint(values.clip(0, 255)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(values)).convert("RGB")
    if note:
        image.info["note"] = note
    return image
