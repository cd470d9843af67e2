"""Pictures brought to a size of another shape: stretched, cropped, or with their edges continued.

The three are A1111's "Just resize", "Crop and resize" and "Resize and fill".
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from ldm.images.files import stretch

# Radii of the blurs that continue a picture into a hole, the coarsest first.
FILL_RADII = (256, 64, 16, 4, 2)


def crop_and_resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the middle of a picture that has the shape of the size, at that size."""
    scale = max(width / image.width, height / image.height)
    part_width, part_height = min(width / scale, image.width), min(height / scale, image.height)
    left, top = (image.width - part_width) / 2, (image.height - part_height) / 2
    box = (left, top, left + part_width, top + part_height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def resize_and_fill(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return a whole picture in the middle of the size; its edges are repeated up to the border."""
    scale = min(width / image.width, height / image.height)
    inner_width = min(max(round(image.width * scale), 1), width)
    inner_height = min(max(round(image.height * scale), 1), height)
    inner = np.asarray(stretch(image, inner_height, inner_width))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    margins = ((top, height - inner_height - top), (left, width - inner_width - left))
    return Image.fromarray(np.pad(inner, (*margins, *((0, 0),) * (inner.ndim - 2)), mode="edge"))


def fill_masked(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Return an RGB picture whose masked part is its surroundings, blurred into it.

    Each pixel is a mean of the pixels outside of the mask, weighted by Gaussians of ``FILL_RADII``:
    fine ones near the edge, coarse ones where no other reaches. Inpainting that starts from it does
    not see what was there. Where the mask is 0, the picture is as before; A1111 calls it "fill".

    mask: of the picture's size, white is filled.
    """
    white = mask.convert("L")
    hole = np.asarray(white, np.float32)[..., None] / 255
    pixels = np.asarray(image.convert("RGB"), np.float32)
    if hole.min() >= 1:  # there are no surroundings
        return image.convert("RGB")
    known = Image.fromarray(np.uint8(np.rint((1 - hole[..., 0]) * 255)))
    masked = Image.fromarray(np.uint8(np.rint(pixels * (1 - hole))))
    mean = (pixels * (1 - hole)).sum(axis=(0, 1)) / (1 - hole).sum()
    filled = np.broadcast_to(mean, pixels.shape)
    for radius in FILL_RADII:
        kernel = ImageFilter.GaussianBlur(radius)
        weight = np.asarray(known.filter(kernel), np.float32)[..., None] / 255
        colours = np.asarray(masked.filter(kernel), np.float32)
        blurred = np.clip(colours / np.maximum(weight, 1 / 255), 0, 255)
        # Rounding to 8 bits leaves nothing of faint weights.
        share = np.clip(weight * 8, 0, 1)
        filled = share * blurred + (1 - share) * filled
    # A pixel of a soft edge that is partly known keeps that part.
    result = np.where(hole > 0, hole * filled + (1 - hole) * pixels, pixels)
    return Image.fromarray(np.uint8(np.rint(result)))
