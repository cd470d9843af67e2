"""The denoiser that samplers call: (x, level) → x̂₀, with classifier-free guidance inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.conditioning import Conditioning, Prompted
from ldm.scheduler import DDPMScheduler, Level
from ldm.unet import UNet


class Denoiser:
    """Asks the U-Net about x once with the text and once without, and turns the answer into x̂₀.

    Source: Ho & Salimans 2022, eq. 6, in the form uncond + s·(cond − uncond); s is their w + 1.
    Of texts that AND joins, cond is uncond + Σ wᵢ·(condᵢ − uncond): Liu et al. 2022,
    "Compositional Visual Generation with Composable Diffusion Models", eq. 11.

    Attributes:
        step: the number of the run's present step, from 1, for prompts that change; whoever runs
            the sampler counts it up. Both calls of a sampler that asks twice a step hear one text.
    """

    def __init__(
        self,
        unet: UNet,
        scheduler: DDPMScheduler,
        prompted: Sequence[Prompted],
        guidance_scale: float,
        known: Tensor | None = None,
    ) -> None:
        """Guidance is off, and costs nothing, for s ≤ 1 and for networks that are told s (LCM).

        Where AND joins texts, uncond is asked for all the same; s is then 1.
        prompted: of each of the B pictures.
        known: (B, C', h, w), what an inpainting network is shown beside x.
        """
        self.unet, self.scheduler, self.known = unet, scheduler, known
        self.step = 1
        distilled = unet.config.time_cond_proj_dim is not None
        self.told_scale = guidance_scale if distilled else None
        self.guidance_scale = 1.0 if distilled else max(guidance_scale, 1.0)
        combined = any(one.combined for one in prompted)
        self.guided = self.guidance_scale > 1 or combined
        pairs = [(i, script) for i, one in enumerate(prompted) for script in one.scripts]
        self.weights: Tensor | None = None  # (B, texts): how much each text counts for each picture
        if combined:
            self.weights = torch.zeros(len(prompted), len(pairs))
            for text, (i, script) in enumerate(pairs):
                self.weights[i, text] = script.weight
        if self.guided:
            pairs = [(i, one.negative) for i, one in enumerate(prompted)] + pairs
        self.scripts = [script for _, script in pairs]
        self.pictures = [i for i, _ in pairs]
        self.told: list[Conditioning] = []
        self.batches: list[Batch] = []

    @torch.no_grad()
    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """x: (B, C, h, w), float32, on any device; returns x̂₀ like it."""
        prediction = self.predict(x, level)
        if self.guided:
            uncond, cond = prediction[: len(x)], prediction[len(x) :]
            if self.weights is not None:
                shift = cond - uncond[self.pictures[len(x) :]]
                cond = uncond + torch.tensordot(self.weights.to(cond), shift, 1)
            prediction = uncond + self.guidance_scale * (cond - uncond)
        return self.scheduler.to_x0(prediction.to(x), x, level.alpha, level.sigma)

    def predict(self, x: Tensor, level: Level) -> Tensor:
        """What the U-Net says to each script: in one batch where all contexts are of one length."""
        told = [script.at(self.step) for script in self.scripts]
        if told != self.told:
            self.told, self.batches = told, list(batches(told, self.pictures))
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
