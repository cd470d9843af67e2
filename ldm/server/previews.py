"""Previews of a picture that is being drawn."""

from __future__ import annotations

from PIL.Image import Image
from torch import Tensor

from ldm.images.files import to_pil
from ldm.pipeline import Pipeline

# A picture of so many pixels is decoded for a preview: that takes a few hundredths of a second.
DECODED_PIXELS = 256 * 256


def preview(pipe: Pipeline, x0: Tensor) -> Image:
    """Return what a picture will look like, of the estimate (1, C, h, w) of its latents.

    Of a small picture, it is decoded; of a large one, rough colours, an eighth as large.
    """
    height, width = (side * pipe.vae.config.scale for side in x0.shape[-2:])
    if height * width <= DECODED_PIXELS:
        return decoded(pipe, x0)[0]
    return to_pil(pipe.preview(x0) * 2 - 1)[0]


def decoded(pipe: Pipeline, x0: Tensor) -> list[Image]:
    """Decode latents (B, C, h, w)."""
    return to_pil(pipe.decode(x0))
