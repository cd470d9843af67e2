"""A picture without what is to be drawn anew, as the inpainting ControlNets expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ldm.control.preprocessors.arrays import Bytes, Mask, check_picture, read_rgb, to_image
from ldm.errors import ArgumentError
from ldm.images.files import load_layer
from ldm.images.layers import layer_to_mask

if TYPE_CHECKING:
    import torch


def inpaint(image: Image.Image, mask: Image.Image | None = None) -> Image.Image:
    """Draw what is masked black: to look at, as a picture has no −1 (`make_inpaint_condition`).

    mask: white where the picture is drawn anew, of the same size; None: where it is transparent.
    Raises ArgumentError for a mask of another size or without white, and as ``read_rgb``.
    """
    pixels, masked = picture_and_mask(image, mask)
    return to_image(np.where(masked[..., None], np.uint8(0), pixels))


def make_inpaint_condition(image: Image.Image, mask: Image.Image | None = None) -> torch.Tensor:
    """Return the input of an inpainting ControlNet: float32 (1, 3, H, W) in [0, 1], masked −1.

    As the function of this name in diffusers' documentation: a pixel is masked if the mask is
    above 0.5 there. The arguments and errors are those of ``inpaint``.
    """
    import torch

    pixels, masked = picture_and_mask(image, mask)
    values = np.where(masked[..., None], np.float32(-1), pixels / np.float32(255))
    return torch.from_numpy(values.transpose(2, 0, 1)[None].copy())


def picture_and_mask(image: Image.Image, mask: Image.Image | None) -> tuple[Bytes, Mask]:
    """Return uint8 (H, W, 3), and (H, W), True where it is masked."""
    pixels = read_rgb(image)
    if mask is None:
        layer = load_layer(image)
        if layer.mode != "RGBA":
            raise ArgumentError(
                "inpaint needs to know what to draw anew; give a mask, or an image with "
                "transparent parts"
            )
        opaque = np.asarray(layer.getchannel("A"))
        masked = opaque < 128
    else:
        check_picture(mask, "mask")
        if (size := mask.size) != (pixels.shape[1], pixels.shape[0]):
            raise ArgumentError(
                f"mask is {size[0]}x{size[1]} and image {pixels.shape[1]}x{pixels.shape[0]}; "
                "they must be of one size: use mask.resize(image.size)"
            )
        white = layer_to_mask(load_layer(mask), "mask", [Image.fromarray(pixels)])
        masked = np.asarray(white.convert("L")) >= 128
    if not masked.any():
        kind = "mask has no white" if mask is not None else "image has no transparent part"
        raise ArgumentError(f"{kind}: nothing would be drawn anew; white is drawn, black stays")
    return pixels, masked
