"""Latents enlarged between two passes, without a picture in between.

Source: ``latent_upscale_modes`` and ``StableDiffusionProcessingTxt2Img.sample_hr_pass`` of A1111's
web UI.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ldm.config.upscalers import BuiltIn


def upscale_latents(latents: Tensor, mode: BuiltIn, size: tuple[int, int]) -> Tensor:
    """Interpolate scaled latents (B, C, h, w) to ``size``, (height, width) of latents, float32."""
    assert mode.latent
    return F.interpolate(latents.float(), size=size, mode=mode.mode, antialias=mode.antialias)
