"""A wider canvas around a picture, to go on drawing past its edges."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ldm.errors import ArgumentError
from ldm.images.files import MAX_PIXELS, MAX_SIDE


def extend_canvas(
    image: Image.Image, left: int, top: int, right: int, bottom: int, factor: int = 8
) -> tuple[Image.Image, Image.Image]:
    """Add pixels on each side of an RGB picture; return it with the mask of the new pixels.

    The new parts repeat the picture's edge, so that image-to-image has something to begin with; the
    right and lower ones also fill each side up to a multiple of ``factor``.
    Raises ArgumentError for a margin below 0, or none at all, and for a canvas that is too large.
    """
    margins = {"left": left, "top": top, "right": right, "bottom": bottom}
    for name, value in margins.items():
        if value < 0:
            raise ArgumentError(f"the margin {name} is {value}; it must be at least 0 pixels")
    if not any(margins.values()):
        raise ArgumentError("all margins are 0; there is nothing to draw")
    right += -(image.width + left + right) % factor
    bottom += -(image.height + top + bottom) % factor
    height, width = image.height + top + bottom, image.width + left + right
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:  # before it is made
        raise ArgumentError(
            f"the picture of {image.width}x{image.height} with its margins would be "
            f"{width}x{height}; at most {MAX_PIXELS:,} pixels and {MAX_SIDE} a side work"
        )
    around = ((top, bottom), (left, right))
    pixels = np.pad(np.asarray(image), (*around, (0, 0)), mode="edge")
    known = np.zeros((image.height, image.width), np.uint8)
    mask = np.pad(known, around, constant_values=255)
    return Image.fromarray(pixels), Image.fromarray(mask)
