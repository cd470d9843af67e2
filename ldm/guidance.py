"""The denoiser that samplers call: (x, level) → x̂₀, with classifier-free guidance inside."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.scheduler import DDPMScheduler, Level
from ldm.unet import UNet


class Denoiser:
    """Asks the U-Net about x once with the text and once without, and turns the answer into x̂₀.

    Source: Ho & Salimans 2022, eq. 6, in the form uncond + s·(cond − uncond); s is their w + 1.
    """

    def __init__(
        self,
        unet: UNet,
        scheduler: DDPMScheduler,
        context: Tensor,
        negative: Tensor,
        guidance_scale: float,
    ) -> None:
        """context and negative: (B, tokens, D). Guidance is off, and costs nothing, for s ≤ 1."""
        self.unet, self.scheduler, self.guidance_scale = unet, scheduler, guidance_scale
        self.guided = guidance_scale > 1
        self.context = torch.cat([negative, context]) if self.guided else context

    @torch.no_grad()
    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """x: (B, C, h, w), float32, on any device; returns x̂₀ like it."""
        inputs = torch.cat([x, x]) if self.guided else x
        inputs = inputs.to(self.context)
        t = torch.full((len(inputs),), level.t, device=inputs.device)
        prediction = self.unet(inputs, t, self.context)
        if self.guided:
            uncond, cond = prediction.chunk(2)
            prediction = uncond + self.guidance_scale * (cond - uncond)
        return self.scheduler.to_x0(prediction.to(x), x, level.alpha, level.sigma)
