"""The denoiser that samplers call: (x, level) → x̂₀, with classifier-free guidance inside."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.conditioning import Conditioning
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
        conditioning: Conditioning,
        negative: Conditioning,
        guidance_scale: float,
        known: Tensor | None = None,
    ) -> None:
        """Guidance is off, and costs nothing, for s ≤ 1 and for networks that are told s (LCM).

        known: (B, C', h, w), what an inpainting network is shown beside x.
        """
        self.unet, self.scheduler, self.guidance_scale = unet, scheduler, guidance_scale
        distilled = unet.config.time_cond_proj_dim is not None
        self.guided = guidance_scale > 1 and not distilled
        self.parts = conditioning.parts
        if self.guided:
            pairs = zip(negative.parts, conditioning.parts, strict=True)
            self.parts = tuple(torch.cat(pair) for pair in pairs)
        context = conditioning.context
        scales = torch.full((len(context),), guidance_scale, device=context.device)
        self.options = {"guidance_scale": scales} if distilled else {}
        self.known = known

    @torch.no_grad()
    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """x: (B, C, h, w), float32, on any device; returns x̂₀ like it."""
        inputs = x if self.known is None else torch.cat([x, self.known], dim=1)
        inputs = (torch.cat([inputs, inputs]) if self.guided else inputs).to(self.parts[0])
        t = torch.full((len(inputs),), level.t, device=inputs.device)
        prediction = self.unet(inputs, t, *self.parts, **self.options)
        if self.guided:
            uncond, cond = prediction.chunk(2)
            prediction = uncond + self.guidance_scale * (cond - uncond)
        return self.scheduler.to_x0(prediction.to(x), x, level.alpha, level.sigma)
