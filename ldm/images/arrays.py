"""Pictures as arrays and tensors, as diffusers takes them, to PIL images.

    (H, W, 3) or (H, W): an array, of 0 to 255 (uint8) or in [0, 1] (floating-point numbers)
    (3, H, W) or (1, H, W): a tensor in [0, 1], or uint8
    one axis more in front: several pictures

Values are rounded to 8 bits, as a file would hold them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ldm.errors import ArgumentError

CHANNELS, TENSOR_CHANNELS = (1, 3, 4), (1, 3)  # a tensor of four channels would be of latents


def is_array(source: object) -> bool:
    """Whether this is an array or a tensor."""
    return isinstance(source, np.ndarray) or (hasattr(source, "detach") and hasattr(source, "ndim"))


def array_pictures(source: Any, name: str) -> list[Image.Image]:
    """Convert an array or a tensor to pictures; ``name``: the argument, for messages.

    Raises ArgumentError for another shape, type or range of values.
    """
    is_tensor = not isinstance(source, np.ndarray)
    values = source.detach().cpu() if is_tensor else source
    if is_tensor:
        values = (values.float() if values.is_floating_point() else values).numpy()
    shape = tuple(values.shape)
    rows = values if values.ndim == 4 else values[None]
    if is_tensor and rows.ndim == 4:
        rows = np.moveaxis(rows, 1, 3)
    channels = TENSOR_CHANNELS if is_tensor else CHANNELS
    if values.ndim not in (2, 3, 4) or (rows.ndim == 4 and rows.shape[3] not in channels):
        form = "tensor (3, H, W) or (B, 3, H, W)" if is_tensor else "array (H, W, 3), (B, H, W, 3)"
        hint = "; give latents as latents=" if rows.ndim == 4 and rows.shape[3] == 4 else ""
        raise ArgumentError(f"{name} has the shape {shape}; expected {form}, or (H, W){hint}")
    if not rows.size:
        raise ArgumentError(f"{name} has the shape {shape}, without a pixel")
    if rows.dtype != np.uint8:
        rows = to_8_bits(rows, name)
    return [Image.fromarray(row[..., 0] if row.shape[2:] == (1,) else row) for row in rows]


def to_8_bits(values: Any, name: str) -> Any:
    """Scale floating-point numbers in [0, 1] to 0…255. Raises ArgumentError for others."""
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(values.dtype, np.floating):
        raise ArgumentError(
            f"{name} has the type {values.dtype}; expected uint8, or floats in [0, 1]"
        )
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # so written, NaN is refused too
        hint = "; for [-1, 1], give image / 2 + 0.5" if low >= -1 and high <= 1 else ""
        raise ArgumentError(
            f"{name} has values from {low:g} to {high:g}; expected [0, 1], or uint8{hint}"
        )
    return np.rint(values * 255).astype(np.uint8)
