"""Classifier-free guidance, and the denoiser that samplers call: (x, level) → x̂₀."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.fast.deepcache import DeepCache
from ldm.fast.graphs import Graphs
from ldm.samplers import Told
from ldm.scheduler import DDPMScheduler, Level
from ldm.text.conditioning import Conditioning, Prompted, Script
from ldm.unet import UNet

# (x, level) → the gradient at x, like it, of the log-probability that a guidance raises; None: of
# none. Any such function guides every sampler, beside the classifier-free guidance.
Gradient = Callable[[Tensor, Level], Tensor | None]
# What looks on hears before the U-Net is asked: (picture, text) of each row; None of negative ones.
Hear = Callable[[list[tuple[int, str] | None]], None]


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
        unet: UNet | DeepCache | Graphs,
        scheduler: DDPMScheduler,
        prompted: Sequence[Prompted],
        guidance: Guidance,
        known: Tensor | None = None,
        hear: Hear | None = None,
        gradient: Gradient | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Networks that are told the scale (LCM) are asked once, but for texts that AND joins.

        prompted: of each of the B pictures.
        known: (B, C', h, w), what an inpainting network is shown beside x.
        hear: see ``ldm.techniques.attention_maps``.
        gradient: of a further guidance, such as ``ldm.classes.guidance``.
        device: where the U-Net computes; None is where it is.
        """
        self.hear = hear
        self.unet, self.scheduler, self.guidance, self.known = unet, scheduler, guidance, known
        self.gradient = gradient
        first = next(unet.parameters())
        self.like = torch.empty(0, dtype=first.dtype, device=device or first.device)
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

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """x: (B, C, h, w), float32, on any device; returns x̂₀ like it.

        A gradient g shifts it as E[x₀ | x] is by Bayes' rule: ε̂ − σ g is x̂₀ + σ²/α g (Dhariwal &
        Nichol 2021, eq. 14 and algorithm 2). DDPM asks ``tell`` and shifts its mean instead, and
        so does DDIM where it clamps x̂₀.
        """
        told = self.tell(x, level)
        if told.gradient is None or not level.alpha:  # at α = 0, x says nothing of a class
            return told.x0
        return told.x0.add(told.gradient, alpha=level.sigma**2 / level.alpha)

    @torch.no_grad()
    def tell(self, x: Tensor, level: Level) -> Told:
        """x̂₀, v of a network that predicts its variance, and the gradient, each like x."""
        guided = self.told_scale is None and self.guidance.active(level)
        uncond = None
        if guided or self.weights is not None:
            prediction = self.predict(x, level, self.negatives + self.texts)
            uncond, cond = prediction[: len(x)], prediction[len(x) :]
            if self.weights is not None:
                shift = cond - uncond[[i for i, _ in self.texts]]
                cond = uncond + torch.tensordot(self.weights.to(cond), shift, 1)
        else:
            cond = self.predict(x, level, self.texts)
        # A network that predicts its variance, too, does so in a second half of channels.
        channels = x.shape[1]
        prediction, v = cond[:, :channels], cond[:, channels:]
        if guided:
            prediction = self.guidance.combine(prediction, uncond[:, :channels])
        x0 = self.scheduler.to_x0(prediction.to(x), x, level)
        gradient = self.gradient(x, level) if self.gradient else None
        return Told(x0, v.to(x) if v.shape[1] else None, gradient)

    def predict(self, x: Tensor, level: Level, asked: Sequence[tuple[int, Script]]) -> Tensor:
        """What the U-Net says to each (picture, script), at once where all are of one length."""
        told = [script.at(self.step) for _, script in asked]
        if told != self.told:
            pictures = [i for i, _ in asked]
            self.told, self.batches = told, list(batches(told, pictures, self.like.device))
        inputs = x if self.known is None else torch.cat([x, self.known], dim=1)
        predictions = []
        for batch in self.batches:
            mine = inputs.to(self.like)[batch.pictures]
            options = dict(batch.parts)
            if self.told_scale is not None:
                scales = torch.full((len(mine),), self.told_scale, device=mine.device)
                options["guidance_scale"] = scales
            t = torch.full((len(mine),), level.t, device=mine.device)
            if self.hear is not None:
                texts = [(i, one.text) for (i, _), one in zip(asked, told, strict=True)]
                without = len(asked) - len(self.texts)  # the negative ones come first
                self.hear([texts[row] if row >= without else None for row in batch.rows])
            predictions.append(self.unet(mine, t, **options))
        if len(predictions) == 1:
            return predictions[0]
        rows = torch.tensor([row for batch in self.batches for row in batch.rows])
        return torch.cat(predictions)[rows.argsort().to(predictions[0].device)]


class Batch(NamedTuple):
    """What the U-Net reads at once."""

    rows: list[int]  # which of all that it is asked
    pictures: Tensor  # whose x each row is about
    parts: dict[str, Tensor]  # what it is told, each (rows, …), by its name of it


def batches(
    told: Sequence[Conditioning], pictures: Sequence[int], device: torch.device
) -> Iterator[Batch]:
    """All rows with contexts of one length at once: one batch, but for prompts of many lengths."""
    lengths = [one.length for one in told]
    for length in dict.fromkeys(lengths):
        rows = [row for row, mine in enumerate(lengths) if mine == length]
        parts = [told[row].parts for row in rows]
        yield Batch(
            rows,
            torch.tensor([pictures[row] for row in rows], device=device),
            {name: torch.stack([part[name] for part in parts]) for name in parts[0]},
        )
