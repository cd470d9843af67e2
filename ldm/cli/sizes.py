"""The size of pictures, and advice for sizes that the model was not trained for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ldm.cli.guidance_options import masked

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.pipeline import Pipeline

FAR = 2  # times more or fewer pixels than the model was trained for, from which on it shows


def image_size(pipe: Pipeline, image: Image, arguments: argparse.Namespace) -> tuple[int, int]:
    """Return (width, height) to draw; a side that is not given follows the image's shape.

    With no side given, an image larger than the model was trained for is drawn smaller, unless a
    mask keeps a part of it.
    """
    width, height = arguments.width, arguments.height
    if width and height:
        return width, height
    if masked(arguments) and not (width or height):
        scale = 1.0
    elif width or height:
        scale = width / image.width if width else height / image.height
    else:
        own_height, own_width = pipe.default_size()
        scale = min(1.0, (own_width * own_height / (image.width * image.height)) ** 0.5)
    factor = pipe.vae.config.scale

    def fit(side: int) -> int:
        return max(factor, int(side * scale + 0.5) // factor * factor)

    return width or fit(image.width), height or fit(image.height)


def size_advice(pipe: Pipeline, arguments: argparse.Namespace) -> str | None:
    """Return advice for a size far from the model's own; None for others and over pictures."""
    if arguments.image is not None or arguments.hires_scale is not None:
        return None
    own_height, own_width = pipe.default_size()
    width, height = arguments.width or own_width, arguments.height or own_height
    ratio = width * height / (own_width * own_height)
    if 1 / FAR <= ratio <= FAR:
        return None
    text = f"{width}x{height} is far from the {own_width}x{own_height} the model was trained for: "
    if ratio < 1:
        return text + "expect a part of what is asked for"
    return text + "expect repetitions; --hires-scale draws small first, then larger over it"
