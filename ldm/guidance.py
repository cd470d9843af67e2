"""Classifier-free guidance, and the denoiser that samplers call: (x, level) → x̂₀."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.conditioning import Conditioning, Prompted, Script
from ldm.errors import ArgumentError
from ldm.fast.deepcache import DeepCache
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
    """Asks the U-Net about x once with the text and once without, and turns the answer into x̂₀.

    Of texts that AND joins, cond is uncond + Σ wᵢ·(condᵢ − uncond): Liu et al. 2022,
    "Compositional Visual Generation with Composable Diffusion Models", eq. 11.

    Attributes:
        step: the number of the run's present step, from 1, for prompts that change; whoever runs
            the sampler counts it up. Both calls of a sampler that asks twice a step hear one text.
    """

    def __init__(
        self,
        unet: UNet | DeepCache,
        scheduler: DDPMScheduler,
        prompted: Sequence[Prompted],
        guidance: Guidance,
        known: Tensor | None = None,
    ) -> None:
        """Networks that are told the scale (LCM) are asked once, but for texts that AND joins.

        prompted: of each of the B pictures.
        known: (B, C', h, w), what an inpainting network is shown beside x.
        """
        self.unet, self.scheduler, self.guidance, self.known = unet, scheduler, guidance, known
        self.step = 1
        self.told_scale = None if unet.config.time_cond_proj_dim is None else guidance.scale
        self.negatives = [(i, one.negative) for i, one in enumerate(prompted)]
        self.texts = [(i, script) for i, one in enumerate(prompted) for script in one.scripts]
        self.weights: Tensor | None = None  # (B, texts): how much each text counts for each picture
        if any(one.combined for one in prompted):
            self.weights = torch.zeros(len(prompted), len(self.texts))
            for text, (i, script) in enumerate(self.texts):
                self.weights[i, text] = script.weight
        self.told: list[Conditioning] = []
        self.batches: list[Batch] = []

    @torch.no_grad()
    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """x: (B, C, h, w), float32, on any device; returns x̂₀ like it."""
        guided = self.told_scale is None and self.guidance.active(level)
        if guided or self.weights is not None:
            prediction = self.predict(x, level, self.negatives + self.texts)
            uncond, cond = prediction[: len(x)], prediction[len(x) :]
            if self.weights is not None:
                shift = cond - uncond[[i for i, _ in self.texts]]
                cond = uncond + torch.tensordot(self.weights.to(cond), shift, 1)
            prediction = self.guidance.combine(cond, uncond) if guided else cond
        else:
            prediction = self.predict(x, level, self.texts)
        return self.scheduler.to_x0(prediction.to(x), x, level.alpha, level.sigma)

    def predict(self, x: Tensor, level: Level, asked: Sequence[tuple[int, Script]]) -> Tensor:
        """What the U-Net says to each (picture, script), at once where all are of one length."""
        told = [script.at(self.step) for _, script in asked]
        if told != self.told:
            self.told, self.batches = told, list(batches(told, [i for i, _ in asked]))
        inputs = x if self.known is None else torch.cat([x, self.known], dim=1)
        predictions = []
        for batch in self.batches:
            mine = inputs.to(batch.parts[0])[batch.pictures]
            options: dict[str, Tensor] = {}
            if self.told_scale is not None:
                scales = torch.full((len(mine),), self.told_scale, device=mine.device)
                options["guidance_scale"] = scales
            t = torch.full((len(mine),), level.t, device=mine.device)
            predictions.append(self.unet(mine, t, *batch.parts, **options))
        if len(predictions) == 1:
            return predictions[0]
        rows = torch.tensor([row for batch in self.batches for row in batch.rows])
        return torch.cat(predictions)[rows.argsort().to(predictions[0].device)]


class Batch(NamedTuple):
    """What the U-Net reads at once."""

    rows: list[int]  # which of all that it is asked
    pictures: Tensor  # whose x each row is about
    parts: list[Tensor]  # what it is told, each (rows, …)


def batches(told: Sequence[Conditioning], pictures: Sequence[int]) -> Iterator[Batch]:
    """All rows with contexts of one length at once: one batch, but for prompts of many lengths."""
    lengths = [len(one.context) for one in told]
    for length in dict.fromkeys(lengths):
        rows = [row for row, mine in enumerate(lengths) if mine == length]
        parts = zip(*(told[row].parts for row in rows), strict=True)
        mine = torch.tensor([pictures[row] for row in rows], device=told[0].context.device)
        yield Batch(rows, mine, [torch.stack(part) for part in parts])
