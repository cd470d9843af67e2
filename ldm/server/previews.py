"""Previews of a picture that is being drawn."""

from __future__ import annotations

from PIL.Image import Image
from torch import Tensor

from ldm.images.files import to_pil
from ldm.pipeline import Pipeline

# A picture of so many pixels is decoded for a preview: that takes a few hundredths of a second.
DECODED_PIXELS = 256 * 256


def is_small(pipe: Pipeline, x0: Tensor) -> bool:
    """Whether pictures of latents (B, C, h, w) are decoded for previews, where there is time."""
    height, width = (side * pipe.vae.config.scale for side in x0.shape[-2:])
    return height * width <= DECODED_PIXELS


def rough(pipe: Pipeline, x0: Tensor) -> Image:
    """Return the rough colours of latents (1, C, h, w), as large as these; takes no time."""
    return to_pil(pipe.preview(x0) * 2 - 1)[0]


def decoded(pipe: Pipeline, x0: Tensor) -> list[Image]:
    """Decode latents (B, C, h, w)."""
    return to_pil(pipe.decode(x0))
