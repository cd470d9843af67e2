"""A picture without its colours."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ldm.control.preprocessors.arrays import read_rgb, to_image


def grey(image: Image.Image) -> Image.Image:
    """Draw the luma (ITU-R BT.601), as ControlNets that colour pictures expect.

    Raises ArgumentError as ``read_rgb``.
    """
    return to_image(np.asarray(Image.fromarray(read_rgb(image)).convert("L")))
