"""Line art: what is darker than its surroundings, as the lines of a drawing are."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from PIL.Image import Image

from ldm.control.preprocessors.arrays import read_rgb, to_image
from ldm.control.preprocessors.filters import gaussian_blur
from ldm.control.preprocessors.parameters import check_parameters
from ldm.control.preprocessors.strokes import CONTRAST, find_strokes

SIDE = 512  # of the pictures that the formula was made for
FAINTEST = 16  # levels: the typical line of a picture without lines is not raised to white


def lineart(
    image: Image,
    sigma: Annotated[float, "[0.5, 20]"] = 6.0,
    threshold: Annotated[float, "[0, 254]"] = 8,
) -> Image:
    """Draw dark lines white on black, as the line art ControlNets expect.

    The formula of ControlNet 1.1's "standard" line art: L = min over channels of (G_σ ∗ I − I), and
    the picture 127 L / max(16, median of L where L > threshold). Of a drawing of strokes, it is the
    maximum over channels, so that coloured ones stay; light strokes on a dark ground are inverted
    first, and ``image.info["note"]`` says so.

    sigma: of the Gaussian that means the surroundings, in pixels; wider than the lines. Smaller in
        proportion if the shorter side is below 512.
    threshold: levels by which a line is darker, for the median.
    Raises ArgumentError for parameters out of range, and as ``read_rgb``.
    """
    check_parameters(lineart, sigma=sigma, threshold=threshold)
    pixels = read_rgb(image, contrast=True)
    strokes = find_strokes(pixels, CONTRAST)
    light = strokes is not None and not strokes.dark
    if light:
        pixels = 255 - pixels
    width = max(0.5, sigma * min(1, min(pixels.shape[:2]) / SIDE))
    channels = gaussian_blur(pixels, width) - pixels
    darker = (channels.min(axis=2) if strokes is None else channels.max(axis=2)).clip(0, 255)
    lines = darker[darker > threshold]
    note = "lineart: light strokes, inverted first" if light else ""
    if not lines.size:
        note = "lineart found no lines; lower its threshold, or use softedge"
    typical = max(FAINTEST, float(np.median(lines)) if lines.size else 0)
    return to_image(darker / np.float32(typical) * 127, note)
