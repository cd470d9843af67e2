"""Thick white strokes on black: a drawing's own, or the outlines of a picture."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from PIL.Image import Image, Resampling, fromarray

from ldm.control.preprocessors.arrays import Bytes, Mask, read_rgb, to_image
from ldm.control.preprocessors.canny import find_edges
from ldm.control.preprocessors.components import connected_components
from ldm.control.preprocessors.filters import dilate
from ldm.control.preprocessors.parameters import check_parameters
from ldm.control.preprocessors.strokes import CONTRAST, find_strokes, stroke_width

SIDE = 512  # of the shorter side at which outlines are looked for
SMOOTH = 1 / 128  # standard deviation of what smooths outlines, as a share of the shorter side
SHORTEST = 0.08  # length of an outline, as a share of the shorter side
STEP = 8 / np.sqrt(2 * np.pi)  # times h / σ: Sobel's derivative of a smoothed step of height h


def scribble(
    image: Image,
    thickness: Annotated[float, "[0, 10]"] = 2.0,
    contrast: Annotated[float, "[1, 254]"] = CONTRAST,
) -> Image:
    """Draw strokes white on black, as the scribble ControlNets expect.

    A drawing of strokes on a plain ground is taken as it is, in white on black, inverted if its
    strokes are the darker part; ``image.info["note"]`` says which. Of any other picture, photograph
    or filled shapes, the longer outlines are drawn.

    thickness: of the strokes, in percent of the shorter side; those of a drawing are only widened.
        0 leaves them, and draws outlines as thin as they are found.
    contrast: of strokes against the ground, or of outlines, in levels of 255, at least.
    Raises ArgumentError for parameters out of range, and as ``read_rgb``.
    """
    check_parameters(scribble, thickness=thickness, contrast=contrast)
    pixels = read_rgb(image, contrast=True)
    strokes = find_strokes(pixels, contrast)
    if strokes is None:
        mask, width = outlines(pixels, contrast), max(1.0, min(pixels.shape[:2]) / SIDE)
        found = "outlines of a picture" if mask.any() else "found no outlines; lower its contrast"
    else:
        mask, width = strokes.mask, stroke_width(strokes.mask)
        found = "dark strokes, inverted" if strokes.dark else "light strokes, not inverted"
    wanted = thickness / 100 * min(mask.shape)
    return to_image(dilate(mask, max(0, round((wanted - width) / 2))), f"scribble: {found}")


def outlines(pixels: Bytes, contrast: float) -> Mask:
    """Return the outlines of (H, W, 3) that are not short, one pixel of ``SIDE`` wide: (H, W)."""
    height, width, _ = pixels.shape
    if (scale := SIDE / min(height, width)) < 1:
        size = (round(width * scale), round(height * scale))
        pixels = np.asarray(fromarray(pixels).resize(size, Resampling.BOX))
    side = min(pixels.shape[:2])
    sigma = max(1.0, SMOOTH * side)
    high = contrast * STEP / sigma
    edges = find_edges(pixels, high / 3, high, sigma)
    where, component = connected_components(edges)
    length = np.bincount(component, minlength=len(where))
    kept = np.zeros(edges.shape, np.bool_)
    kept.ravel()[where[length[component] >= SHORTEST * side]] = True
    return np.asarray(fromarray(kept).resize((width, height), Resampling.NEAREST))
