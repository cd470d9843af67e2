"""Which part of a picture to draw anew: a mask that a user gives → tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from PIL import ImageFilter
from PIL.Image import Image
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.images.files import stretch, to_tensor
from ldm.images.layers import layer_to_mask
from ldm.request import MAX_BLUR

THRESHOLD = 0.5  # where masks are at least as bright, the picture is drawn anew


def to_masks(
    layers: Sequence[Image],
    pictures: Sequence[Image],
    height: int,
    width: int,
    blur: float = 0.0,
) -> Tensor:
    """Convert layers to masks: float32 (B, 1, H, W) in [0, 1], 1 where one is white.

    layers: as ``load_layer`` loads them; of one with transparent parts, see ``layers``.
    pictures: those to mask, as RGB: one, or one for each layer.
    blur: radius in pixels by which the edges are softened.
    Raises ArgumentError for a mask in which nothing is to be drawn or that could mean two things,
    and for a blur out of range.
    """
    if not 0 <= blur <= MAX_BLUR:
        raise ArgumentError(f"mask_blur is {blur}; it must be in [0, {MAX_BLUR}] pixels")
    own = [[picture] for picture in pictures] if len(pictures) == len(layers) else [pictures]
    whites = [
        layer_to_mask(layer, f"mask_image {number}", own[min(number, len(own)) - 1])
        for number, layer in enumerate(layers, 1)
    ]
    resized = [stretch(white, height, width).convert("L") for white in whites]
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
