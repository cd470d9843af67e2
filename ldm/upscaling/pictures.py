"""Pictures as upscalers read them: grey or in colours, with or without transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ldm.images.files import load, load_layer

PLAIN = ("L", "LA", "RGB", "RGBA")


def to_plain(image: Image.Image) -> Image.Image:
    """Return a picture of 8 bits per channel, of mode "L", "LA", "RGB" or "RGBA".

    It is turned as its EXIF data says; 16-bit grey is scaled, palettes become colours.
    """
    if image.mode not in PLAIN or "transparency" in image.info:
        grey = image.mode in ("1", "I", "F") or image.mode.startswith("I;16")
        layer = load_layer(image)
        return layer.convert("L") if grey and layer.mode == "RGB" else layer
    return ImageOps.exif_transpose(image)


def load_with_source(source: str | Path | Image.Image) -> tuple[Image.Image, Image.Image]:
    """Load a picture: as ``to_plain``, and as its file has it, with what that says.

    Raises ImageError as ``load_image`` does.
    """
    found: list[Image.Image] = []

    def read(image: Image.Image) -> Image.Image:
        image.load()  # PNG text may come after the pixels
        image.getexif()  # it is read from the file, which is closed then
        found.append(image.copy())
        return to_plain(image)

    return load(source, read), found[0]


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return a plain picture without transparency, and its transparency if it has some."""
    if image.mode in ("LA", "RGBA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    return image, None


def to_array(image: Image.Image) -> np.ndarray:
    """Return a picture "L" or "RGB" as float32 (C, H, W) in [0, 1], C = 1 or 3."""
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
