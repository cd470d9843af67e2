"""Soft edges: grey lines as bright as the edge is clear."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from PIL.Image import Image

from ldm.control.preprocessors.arrays import Floats, read_rgb, to_image
from ldm.control.preprocessors.filters import gaussian_blur
from ldm.control.preprocessors.parameters import check_parameters

SCALES = (1, 2, 4)  # octaves, so that both fine and blurred edges answer


def softedge(
    image: Image,
    sigma: Annotated[float, "[0.5, 10]"] = 1.0,
    contrast: Annotated[float, "[1, 255]"] = 48,
) -> Image:
    """Draw soft edges white on black, in place of HED's and PiDiNet's networks.

    The gradient of Gaussians of three widths, scaled so that a step of height h answers with h at
    each of them (Lindeberg 1998, "Edge detection and automatic scale selection"); their mean R is
    drawn as 1 − exp(−(R / contrast)²). Fine texture answers at one width only, outlines at all.

    sigma: of the narrowest Gaussian, in pixels; more drops details.
    contrast: the step, in grey levels, that is drawn at 63 % of white; less draws fainter edges.
    Raises ArgumentError for parameters out of range, and as ``read_rgb``.
    """
    check_parameters(softedge, sigma=sigma, contrast=contrast)
    response = edge_response(read_rgb(image, contrast=True), sigma)
    drawn = 255 * (1 - np.exp(-np.square(response / contrast)))
    note = "" if (drawn >= 1).any() else "softedge found no edges; lower its contrast"
    return to_image(drawn, note)


def edge_response(pixels: np.ndarray, sigma: float) -> Floats:
    """Return the mean height of the edges of (H, W, C) at three scales: (H, W), in grey levels."""
    total = np.zeros(pixels.shape[:2], np.float32)
    for scale in SCALES:
        width = scale * sigma
        smooth = gaussian_blur(pixels, width)
        squares = np.zeros_like(smooth)
        for axis in (0, 1):
            if smooth.shape[axis] > 1:
                squares += np.square(np.gradient(smooth, axis=axis))
        # At an ideal step of height h, |∇| of the smoothed picture peaks at h / (σ √(2π)).
        total += np.sqrt(squares.max(axis=2)) * np.float32(width * math.sqrt(2 * math.pi))
    return total / np.float32(len(SCALES))
