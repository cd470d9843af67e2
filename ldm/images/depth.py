"""Depth maps that a user gives: grey pictures, in which near is bright, → tensors.

They are what MiDaS and its successors estimate, inverse depth up to scale and shift, in any range
of values: only the order and the proportions of values count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageOps

from ldm.errors import ArgumentError
from ldm.images.files import load

if TYPE_CHECKING:
    from torch import Tensor

GREY = 8  # channels that differ by no more are of a grey picture, saved as JPEG
SHAPES_DIFFER = 0.05  # relative difference of width / height from which maps are refused


def load_depth(source: Any) -> Image.Image:
    """Load a file or PIL image of any depth per pixel as one of mode "F", with its own values.

    Raises ImageError for a file that cannot be read, for one in colours or with transparent parts,
    and for values that are not finite.
    """
    return load(source, _to_depth)


def _to_depth(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() < 255:
            raise ValueError("it has transparent parts; a depth map is grey and opaque")
    if image.mode not in ("1", "L", "LA", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
        if colourfulness(image) > GREY:
            raise ValueError("it is in colours; a depth map is grey, and near is bright")
        image = image.convert("L")
    elif image.mode == "LA":
        image = image.convert("L")
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are NaN or infinite")
    return Image.fromarray(values)


def colourfulness(image: Image.Image) -> int:
    """Return the largest difference of a pixel's channels in an RGB picture."""
    red, green, blue = image.split()
    high = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    low = ImageChops.darker(ImageChops.darker(red, green), blue)
    (_, most) = ImageChops.subtract(high, low).getextrema()
    return int(most)  # type: ignore[arg-type]  # of one channel


def read_depth(
    source: Any, prompts: int, repeats: int, size: tuple[int, int], factor: int
) -> Tensor:
    """Read maps for pictures of ``size`` (height, width): float32 (b, 1, H/factor, W/factor).

    source: a picture or several, as of ``read_pictures``; or a tensor (b, H, W) or (H, W), as in
    diffusers. The values of each map are stretched to [-1, 1], as SD 2 depth was trained with.
    Raises ArgumentError for a number of maps other than 1 or ``prompts``, for maps of another shape
    than the pictures' and for flat ones, ImageError for what cannot be read.
    """
    import torch
    import torch.nn.functional as F

    from ldm.images.inputs import read_pictures

    pictures = read_pictures(to_pictures(source), "depth_map", prompts, repeats, load_depth)
    assert pictures is not None
    maps = [torch.from_numpy(np.array(picture)) for picture in pictures]
    small = (size[0] // factor, size[1] // factor)
    for each in maps:
        check_shape(each.shape, size)
    resized = [
        F.interpolate(each[None, None], size=small, mode="bicubic", align_corners=False)
        for each in maps
    ]
    return torch.cat([_stretched(each) for each in resized])


def check_shape(found: Sequence[int], size: tuple[int, int]) -> None:
    """Raise ArgumentError for a map (height, width) of another shape than the picture's."""
    ratio = (found[1] * size[0]) / (found[0] * size[1])
    if not 1 - SHAPES_DIFFER <= ratio <= 1 / (1 - SHAPES_DIFFER):
        raise ArgumentError(
            f"depth_map is {found[1]}x{found[0]}, of another shape than the picture of "
            f"{size[1]}x{size[0]}; give a map of the image"
        )


def to_pictures(source: Any) -> Any:
    """Return a tensor of maps, (b, H, W) or (H, W), as pictures; anything else as it is.

    Raises ArgumentError for another shape.
    """
    if not hasattr(source, "detach"):
        return source
    maps = source.detach().float().cpu().numpy()
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or 0 in maps.shape:
        raise ArgumentError(f"depth_map has the shape {maps.shape}; expected (B, H, W)")
    return [Image.fromarray(one) for one in maps]


def _stretched(depth: Tensor) -> Tensor:
    low, high = depth.amin(), depth.amax()
    if low == high:
        raise ArgumentError(
            f"depth_map is {low:g} everywhere; give a map in which near is bright and far is dark"
        )
    return 2 * (depth - low) / (high - low) - 1
