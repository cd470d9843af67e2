"""Photographs, drawings and noise to look for edges in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

SKETCH = Path(__file__).parents[2] / "tools" / "pictures" / "sketch.png"


def photo(name: str, size: int = 256) -> Image.Image:
    """A square part of one of scikit-learn's photographs: "china.jpg" or "flower.jpg"."""
    whole = Image.fromarray(load_sample_image(name))
    return whole.crop((64, 0, 64 + 427, 427)).resize((size, size))


def noise(width: int = 65, height: int = 48, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def house() -> Image.Image:
    """Filled shapes on white."""
    return Image.open(SKETCH).convert("RGB")


def drawing(ink: str = "black", paper: str = "white", width: int = 3) -> Image.Image:
    """A face of strokes."""
    image = Image.new("RGB", (256, 256), paper)
    pen = ImageDraw.Draw(image)
    pen.ellipse([40, 40, 216, 216], outline=ink, width=width)
    pen.arc([90, 120, 166, 186], 0, 180, fill=ink, width=width)
    return image


def everything() -> dict[str, Image.Image]:
    return {
        "china": photo("china.jpg"),
        "flower": photo("flower.jpg"),
        "house": house(),
        "drawing": drawing(),
        "noise": noise(),
        "grey": photo("china.jpg", 101).convert("L").convert("RGB"),
        "column": noise(1, 37),
        "pixel": noise(1, 1),
    }
