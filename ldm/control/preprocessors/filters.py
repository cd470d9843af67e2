"""Filters of arrays (H, W) or (H, W, C): Gaussian blur, Sobel derivatives, dilation by a disc."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ldm.control.preprocessors.arrays import Bytes, Floats, Mask

TRUNCATE = 4.0  # standard deviations at which the Gaussian is cut off


def gaussian_blur(x: NDArray[np.generic], sigma: float) -> Floats:
    """Convolve with a Gaussian of the standard deviation ``sigma`` in pixels.

    Past its edges the picture is mirrored, without a second copy of the edge: as OpenCV's
    GaussianBlur of floats.
    """
    radius = round(TRUNCATE * sigma)
    out = x.astype(np.float32)
    if not radius:
        return out
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    weights /= 2 * weights.sum() - weights[0]
    for axis in (0, 1):
        size = out.shape[axis]
        margins = [(radius, radius) if each == axis else (0, 0) for each in range(out.ndim)]
        padded = np.moveaxis(np.pad(out, margins, "reflect"), axis, 0)
        out = np.empty_like(out)
        rows, pair = np.moveaxis(out, axis, 0), np.empty_like(padded[:size])
        np.multiply(padded[radius : radius + size], np.float32(weights[0]), out=rows)
        for offset in range(1, radius + 1):
            before, after = radius - offset, radius + offset
            np.add(padded[before : before + size], padded[after : after + size], out=pair)
            pair *= np.float32(weights[offset])
            rows += pair
    return out


def sobel(x: Bytes) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return the derivatives along x and y by Sobel's 3×3 kernels: int16, of uint8.

    A step of height h has the derivative 4h. Past its edges the picture continues.
    """
    p = np.pad(x, [(1, 1), (1, 1), (0, 0)][: x.ndim], "edge").astype(np.int16)
    columns = p[:-2] + 2 * p[1:-1] + p[2:]
    rows = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    return columns[:, 2:] - columns[:, :-2], rows[2:] - rows[:-2]


def dilate(mask: Mask, radius: float) -> Mask:
    """Grow what is True of (H, W) by a disc of ``radius`` pixels."""
    height, width = mask.shape
    reach = min(int(radius), height)
    out = mask.copy()
    for offset in range(reach + 1):
        half = min(int(math.sqrt(radius**2 - offset**2)), width)
        # Whether any of a row's pixels from x − half to x + half is True, by running sums.
        sums = np.cumsum(np.pad(mask, ((0, 0), (half + 1, half))), axis=1, dtype=np.int32)
        near = sums[:, 2 * half + 1 :] > sums[:, :width]
        out[offset:] |= near[: height - offset]
        out[: height - offset] |= near[offset:]
    return out
