"""Which part of a picture to draw anew: a mask that a user gives → tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from PIL import ImageFilter
from PIL.Image import Image
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.images.files import stretch, to_tensor
from ldm.request import MAX_BLUR

THRESHOLD = 0.5  # where masks are at least as bright, the picture is drawn anew


def to_masks(pictures: Sequence[Image], height: int, width: int, blur: float = 0.0) -> Tensor:
    """Convert pictures to masks: float32 (B, 1, H, W) in [0, 1], 1 where a picture is white.

    blur: radius in pixels by which the edges are softened.
    Raises ArgumentError for a mask in which nothing is to be drawn, and for a blur out of range.
    """
    if not 0 <= blur <= MAX_BLUR:
        raise ArgumentError(f"mask_blur is {blur}; it must be in [0, {MAX_BLUR}] pixels")
    resized = [stretch(picture, height, width).convert("L") for picture in pictures]
    if blur:
        resized = [picture.filter(ImageFilter.GaussianBlur(blur)) for picture in resized]
    masks = to_tensor([picture.convert("RGB") for picture in resized])[:, :1] / 2 + 0.5
    for index, mask in enumerate(masks):
        if not (mask >= THRESHOLD).any():
            blurred = f", and mask_blur is {blur:g} pixels" if blur else ""
            raise ArgumentError(
                f"mask_image {index + 1} has no white: nothing would be drawn anew; "
                f"white is drawn, black stays{blurred}"
            )
    return masks


def shrink_masks(masks: Tensor, factor: int) -> Tensor:
    """Keep the first value of each square, as diffusers: (B, 1, H/factor, W/factor)."""
    return F.interpolate(masks, scale_factor=1 / factor, mode="nearest")
