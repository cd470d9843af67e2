"""A picture without its details."""

from __future__ import annotations

from typing import Annotated

from PIL import Image

from ldm.control.preprocessors.arrays import read_rgb
from ldm.control.preprocessors.parameters import check_parameters


def tile(image: Image.Image, factor: Annotated[float, "[1, 64]"] = 4.0) -> Image.Image:
    """Blur by scaling down and up, as the tile ControlNets expect, which add new details.

    Down by the mean of each area (OpenCV's INTER_AREA), up by bicubic interpolation.

    factor: how much smaller each side is between; 1 changes nothing.
    Raises ArgumentError for a factor out of range, and as ``read_rgb``.
    """
    check_parameters(tile, factor=factor)
    whole = Image.fromarray(read_rgb(image))
    size = (max(1, round(whole.width / factor)), max(1, round(whole.height / factor)))
    small = whole.resize(size, Image.Resampling.BOX)
    return small.resize(whole.size, Image.Resampling.BICUBIC)
