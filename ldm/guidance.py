"""Classifier-free guidance, and the denoiser that samplers call: (x, level) → x̂₀."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.conditioning import Conditioning
from ldm.errors import ArgumentError
from ldm.scheduler import DDPMScheduler, Level
from ldm.unet import UNet


@dataclass(frozen=True)
class Guidance:
    """How the predictions with and without the text become one. Off, it costs nothing.

    scale: s in uncond + s·(cond − uncond), eq. 6 of Ho & Salimans 2022 with s = w + 1; off up to 1.
    rescale: φ in [0, 1], how much of the contrast that guidance adds is taken back.
    interval: guidance is on only where low < σ/α ≤ high (Kynkäänniemi et al. 2024, eq. 5).
    """

    scale: float = 7.5
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        """Raise ArgumentError for numbers that do not work."""
        if not math.isfinite(self.scale):
            raise ArgumentError(
                f"guidance_scale is {self.scale}; it must be a number, 1 to 15 as a rule"
            )
        if not 0 <= self.rescale <= 1:
            raise ArgumentError(
                f"guidance_rescale is {self.rescale}; it must be in [0, 1]: 0 is off, 0.7 is usual"
            )
        low, high = self.interval
        if not 0 <= low < high:
            raise ArgumentError(
                f"guidance_interval is {low} to {high}; it must be two levels of σ/α, "
                "the lower one first, such as 0.3 to 5"
            )

    def active(self, level: Level) -> bool:
        """Whether the prediction without the text is needed at a level."""
        low, high = self.interval
        ratio = level.sigma / level.alpha if level.alpha else math.inf
        return self.scale > 1 and low < ratio <= high

    def combine(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """Guide predictions (B, C, h, w)."""
        guided = uncond + self.scale * (cond - uncond)
        if not self.rescale:
            return guided
        # Lin et al. 2023, eq. 15 and 16: to the standard deviation that the text alone has.
        dims = tuple(range(1, cond.ndim))
        factor = cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        return self.rescale * factor * guided + (1 - self.rescale) * guided


class Denoiser:
    """Asks the U-Net about x once with the text and once without, and turns the answer into x̂₀."""

    def __init__(
        self,
        unet: UNet,
        scheduler: DDPMScheduler,
        conditioning: Conditioning,
        negative: Conditioning,
        guidance: Guidance,
        known: Tensor | None = None,
    ) -> None:
        """Networks that are told the scale (LCM) are asked once.

        known: (B, C', h, w), what an inpainting network is shown beside x.
        """
        self.unet, self.scheduler, self.guidance, self.known = unet, scheduler, guidance, known
        self.distilled = unet.config.time_cond_proj_dim is not None
        self.cond = conditioning.parts
        pairs = zip(negative.parts, conditioning.parts, strict=True)
        self.both = tuple(torch.cat(pair) for pair in pairs)
        context = conditioning.context
        scales = torch.full((len(context),), guidance.scale, device=context.device)
        self.options = {"guidance_scale": scales} if self.distilled else {}

    @torch.no_grad()
    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """x: (B, C, h, w), float32, on any device; returns x̂₀ like it."""
        inputs = x if self.known is None else torch.cat([x, self.known], dim=1)
        guided = self.guidance.active(level) and not self.distilled
        parts = self.both if guided else self.cond
        inputs = (torch.cat([inputs, inputs]) if guided else inputs).to(parts[0])
        t = torch.full((len(inputs),), level.t, device=inputs.device)
        prediction = self.unet(inputs, t, *parts, **self.options)
        if guided:
            uncond, cond = prediction.chunk(2)
            prediction = self.guidance.combine(cond, uncond)
        return self.scheduler.to_x0(prediction.to(x), x, level.alpha, level.sigma)
