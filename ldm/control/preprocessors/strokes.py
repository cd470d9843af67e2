"""Whether a picture is a drawing of strokes on a plain ground, and where these are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ldm.control.preprocessors.arrays import Bytes, Mask
from ldm.control.preprocessors.filters import dilate

MOST_INK = 0.35  # share of a drawing that is strokes, at most
WIDEST = 0.06  # width of a stroke as a share of the shorter side, at most
FILLED = 0.1  # share of the ink that may be wider
ENOUGH = 512  # pixels of the shorter side that show it
CONTRAST = 48  # levels by which strokes differ from the ground, at least


class Strokes(NamedTuple):
    """The strokes of a drawing."""

    mask: Mask  # (H, W), True where they are
    dark: bool  # whether they are darker than the ground


def find_strokes(pixels: Bytes, contrast: float) -> Strokes | None:
    """Find the strokes of a drawing (H, W, 3); None for photographs and for filled shapes.

    contrast: by how many levels, in some channel, strokes differ from the ground.
    """
    ground = ground_colour(pixels)
    difference = np.abs(pixels.astype(np.int16) - ground.astype(np.int16)).max(axis=2)
    mask = difference > contrast
    ink = int(mask.sum())
    if not 0 < ink <= MOST_INK * mask.size:
        return None
    thinned = mask[:: (step := math.ceil(min(mask.shape) / ENOUGH)), ::step]
    wide = ~dilate(~thinned, max(1, round(WIDEST / 2 * min(thinned.shape))))
    if wide.sum() > FILLED * thinned.sum():
        return None
    return Strokes(mask, bool(pixels[mask].mean() < ground.mean()))


def ground_colour(pixels: Bytes) -> np.ndarray:
    """Return the median of the pixels of the most frequent colour: (3,)."""
    coarse = (pixels >> 4).astype(np.int32) @ np.array([256, 16, 1], np.int32)
    return np.median(pixels[coarse == np.bincount(coarse.ravel()).argmax()], axis=0)


def stroke_width(mask: Mask) -> float:
    """Return the mean width of strokes in pixels: twice their area by the length of their edge."""
    inner = ~dilate(~mask, 1)
    rim = int((mask & ~inner).sum())
    return 2 * int(mask.sum()) / rim if inner.any() else 1.0
