"""Edges one pixel wide (Canny 1986, "A Computational Approach to Edge Detection")."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from PIL.Image import Image

from ldm.control.preprocessors.arrays import Bytes, Mask, read_rgb, to_image
from ldm.control.preprocessors.components import connected_components
from ldm.control.preprocessors.filters import gaussian_blur, sobel
from ldm.control.preprocessors.parameters import check_parameters
from ldm.errors import ArgumentError

TAN_22_5 = round((2**0.5 - 1) * 2**15)  # in fixed point


def canny(
    image: Image,
    low: Annotated[float, "[0, 2040]"] = 100,
    high: Annotated[float, "[0, 2040]"] = 200,
    sigma: Annotated[float, "[0, 20]"] = 0,
) -> Image:
    """Draw the edges white on black, as the canny ControlNets expect.

    With ``sigma`` 0, it equals ``cv2.Canny(image, low, high)``, of which these networks' training
    pictures were made, bit-identically.

    low, high: thresholds of |∂I/∂x| + |∂I/∂y| by Sobel's kernels, of the channel that has most. An
        edge begins above ``high`` and continues above ``low``.
    sigma: of the Gaussian that smooths the picture first, in pixels.
    Raises ArgumentError for parameters out of range, ``low`` above ``high``, and as ``read_rgb``.
    """
    check_parameters(canny, low=low, high=high, sigma=sigma)
    if low > high:
        raise ArgumentError(f"canny: low is {low:g} and high {high:g}; low must not be above high")
    pixels = read_rgb(image, contrast=True)
    edges = find_edges(pixels, low, high, sigma)
    note = "" if edges.any() else "canny found no edges; lower its thresholds low and high"
    return to_image(edges, note)


def find_edges(pixels: Bytes, low: float, high: float, sigma: float = 0) -> Mask:
    """Return where edges of (H, W, C) are: (H, W). The arguments are those of ``canny``."""
    if sigma:
        pixels = np.rint(gaussian_blur(pixels, sigma)).astype(np.uint8)
    dx, dy = strongest_channel(*sobel(pixels))
    magnitude = np.pad(np.abs(dx) + np.abs(dy), 1)
    ridge = thin(magnitude, dx, dy, int(low))
    strong = magnitude[1:-1, 1:-1] > int(high)
    return hysteresis(ridge, strong)


def strongest_channel(dx: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the derivatives of the channel that has most: (H, W, C) → (H, W)."""
    x, y = dx[..., 0], dy[..., 0]
    most = np.abs(x) + np.abs(y)
    for channel in range(1, dx.shape[2]):
        more = np.abs(dx[..., channel]) + np.abs(dy[..., channel])
        stronger = more > most
        x, y = np.where(stronger, dx[..., channel], x), np.where(stronger, dy[..., channel], y)
        most = np.maximum(most, more)
    return x, y


def thin(magnitude: np.ndarray, dx: np.ndarray, dy: np.ndarray, low: int) -> Mask:
    """Return where the magnitude is above ``low`` and a maximum across the edge.

    magnitude: (H + 2, W + 2), with a margin. The direction across is one of four.
    """
    row = magnitude.shape[1]
    ridge = np.zeros(dx.shape, np.bool_)
    y, x = np.nonzero(magnitude[1:-1, 1:-1] > low)
    flat, at = magnitude.ravel(), (y + 1) * row + x + 1
    gx, gy = dx[y, x].astype(np.int64), dy[y, x].astype(np.int64)
    run, rise = np.abs(gx) * TAN_22_5, np.abs(gy) << 15
    horizontal = rise < run
    vertical = rise > run + (np.abs(gx) << 16)  # tan 67.5° = tan 22.5° + 2
    diagonal = ~(horizontal | vertical)
    across = np.where(horizontal, 1, row)
    across[diagonal] += np.where((gx ^ gy)[diagonal] < 0, -1, 1)
    here, after = flat[at], flat[at + across]
    # Of two equal neighbours one stays, except along diagonals, as in OpenCV.
    peak = (here > flat[at - across]) & ((here > after) | (~diagonal & (here == after)))
    ridge[y[peak], x[peak]] = True
    return ridge


def hysteresis(ridge: Mask, strong: Mask) -> Mask:
    """Keep the components of a ridge that have a strong pixel."""
    where, component = connected_components(ridge)
    kept = np.zeros(len(where), np.bool_)
    kept[component[strong.ravel()[where]]] = True
    edges = np.zeros(ridge.shape, np.bool_)
    edges.ravel()[where[kept[component]]] = True
    return edges
