"""The denoiser that samplers call: (x, level, step) → x̂₀, from a guided U-Net.

It batches the rows of a U-Net call (each picture with its texts and its negative prompt), splits
the output again, and lets ``ldm.guidance`` combine it into one prediction. On a CPU, many rows of
large pictures become several calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ldm.fast.deepcache import DeepCache
from ldm.fast.graphs import Graphs
from ldm.guidance import Guidance
from ldm.memory.networks import rows_at_once
from ldm.samplers import Denoised
from ldm.scheduler import DDPMScheduler, Level
from ldm.text.conditioning import Conditioning, Prompted, Script
from ldm.unet import ImagePrompt, Residuals, UNet

if TYPE_CHECKING:
    from ldm.fast.openvino.parts import EngineUNet

# Called before each U-Net call with (picture, text) per row; None for negative prompts.
Listener = Callable[[list[tuple[int, str] | None]], None]


class Predictions(NamedTuple):
    """What the network predicts at one call of the denoiser, each (B, C, h, w) on any device.

    Attributes:
        uncond: with the negative prompt; None where nothing is guided.
        cond: with the text, or with the texts that AND joins. guided: what x̂₀ follows from.
    """

    x: Tensor
    level: Level
    uncond: Tensor | None
    cond: Tensor
    guided: Tensor


# Called after each U-Net call; it must not change the tensors.
Observer = Callable[[Predictions], None]

# (the call, the step) → what is added on the U-Net's way down; [] for nothing.
Features = Callable[["UNetCall", int], Sequence[Tensor]]


class Steering(Protocol):
    """What steers the U-Net by pictures, such as ``ldm.control.steering.Control``."""

    def __call__(
        self, x: Tensor, t: Tensor, call: UNetCall, step: int, short: bool = False
    ) -> Residuals | None:
        """Return what is added to the U-Net's activations.

        x: of each row; short: whether the finest skip connection alone is read.
        """

    def around(self, call: UNetCall, step: int) -> AbstractContextManager[None]:
        """Return the context of the U-Net's call."""


class Sharing(Protocol):
    """How the rows of a U-Net call read each other's self-attention, such as a reference's.

    ``ldm.techniques.reference`` and ``ldm.techniques.style_aligned`` are of this form.
    """

    unet: UNet  # a view of the model's U-Net, for this run

    def begin(self, level: Level) -> None:
        """Prepare for the U-Net calls at a level of noise."""

    def wrap(self, unet: Callable[..., Tensor], call: UNetCall) -> Callable[..., Tensor]:
        """Return what computes the rows of a call, with ``unet``, which computes the view."""


class Denoiser:
    """Call the U-Net on x with each picture's texts, guide, and turn the output into x̂₀."""

    def __init__(
        self,
        unet: UNet | DeepCache | Graphs | EngineUNet,
        scheduler: DDPMScheduler,
        prompted: Sequence[Prompted],
        guidance: Guidance,
        *,
        known: Tensor | None = None,
        embedded_scale: float | None = None,
        listener: Listener | None = None,
        control: Steering | None = None,
        features: Features | None = None,
        sharing: Sharing | None = None,
        image_prompts: Callable[[UNetCall], ImagePrompt] | None = None,
        device: torch.device | None = None,
        steps_done: int = 0,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Lay out the rows.

        prompted: of each of the B pictures.
        known: (B, C', h, w), the further input channels of a network for inpainting, edits or
            depth.
        embedded_scale: the guidance scale, for networks that read it as an input (Meng et al. 2023,
            "On Distillation of Guided Diffusion Models"; LCM); ``guidance`` then combines nothing.
        listener: such as ``ldm.techniques.attention_maps.AttentionMaps.set_rows``.
        control: such as ``ldm.control.steering.Control``.
        features: such as ``ldm.control.features.AdapterFeatures``.
        sharing: whose view of a U-Net ``unet`` computes; None if rows do not read each other.
        image_prompts: such as ``ldm.control.image_prompts.ImagePrompts``.
        device: where the U-Net computes; None takes that of its parameters.
        steps_done: how many steps another model has run before, for prompts that change.
        observers: see ``ldm.techniques.predictions``.
        """
        self.unet, self.scheduler, self.guidance = unet, scheduler, guidance
        self.known, self.embedded_scale, self.listener = known, embedded_scale, listener
        self.control, self.features, self.sharing = control, features, sharing
        self.image_prompts = image_prompts
        self.steps_done, self.observers = steps_done, observers
        first = next(unet.parameters())
        self.dtype, self.device = first.dtype, device or first.device
        self.negatives = [CallRow(i, one.negative, negative=True) for i, one in enumerate(prompted)]
        self.bare = [row._replace(bare=True) for row in self.negatives]
        self.texts = [
            CallRow(i, script, negative=False)
            for i, one in enumerate(prompted)
            for script in one.scripts
        ]
        self.weights: Tensor | None = None  # (B, texts), where AND joins texts
        if any(one.combined for one in prompted):
            self.weights = torch.zeros(
                len(prompted), len(self.texts), dtype=torch.float32, device="cpu"
            )
            for i, row in enumerate(self.texts):
                self.weights[row.picture, i] = row.script.weight
        # The last U-Net calls, which are used again if the conditionings stay the same.
        self._conditionings: list[Conditioning] = []
        self._calls: list[UNetCall] = []

    @torch.no_grad()
    def __call__(self, x: Tensor, level: Level, step: int = 1) -> Denoised:
        """Return x̂₀ and what else is known of x (B, C, h, w), float32, on any device.

        step: the number of the run's step, from 1, for prompts that change.
        """
        # A network that predicts its variance, too, does so in a second half of channels.
        channels, guidance = x.shape[1], self.guidance
        guided = self.embedded_scale is None and self.guidance.active(level)
        negative: Tensor | None = None
        if guided or self.weights is not None:
            rows = self.negatives + self.texts
            if guided and self.guidance.needs_bare:
                rows = rows + self.bare
            output = self._call_unet(x, level, rows, step)
            uncond, cond = output[: len(x)], output[len(x) :]
            if len(cond) > len(self.texts):
                cond, bare = cond.split([len(self.texts), len(x)])
                guidance = guidance.with_bare(bare[:, :channels])
            if self.weights is not None:
                shifts = cond - uncond[[row.picture for row in self.texts]]
                cond = uncond + self.guidance.join(shifts, self.weights)
            prediction = cond[:, :channels]
            if guided:
                negative = uncond[:, :channels]
                prediction = guidance.combine(prediction, negative, x, level)
        else:
            cond = self._call_unet(x, level, self.texts, step)
            prediction = cond[:, :channels]
        if self.observers:
            seen = Predictions(x, level, negative, cond[:, :channels], prediction)
            for observe in self.observers:
                observe(seen)
        variance = cond[:, channels:]
        x0 = self.scheduler.to_x0(prediction.to(x), x, level)
        gradient = self.guidance.gradient(x, level)
        return Denoised(x0, variance.to(x) if variance.shape[1] else None, gradient)

    def _call_unet(self, x: Tensor, level: Level, rows: Sequence[CallRow], step: int) -> Tensor:
        """Return the U-Net's output for each row, from as few calls as ``group_rows`` allows."""
        conditionings = [row.script.at(self.steps_done + step) for row in rows]
        if conditionings != self._conditionings:
            self._conditionings = conditionings
            # What keeps something from call to call, or lets rows read each other, has one call.
            apart = self.sharing is None and isinstance(self.unet, UNet)
            most = rows_at_once(*x.shape[2:]) if apart and self.device.type == "cpu" else len(rows)
            self._calls = list(group_rows(rows, conditionings, self.device, most))
        inputs = x if self.known is None else torch.cat([x, self.known], dim=1)
        if self.sharing is not None:
            self.sharing.begin(level)
        outputs = []
        for call in self._calls:
            mine = inputs.to(self.device, self.dtype)[call.pictures]
            if call.bare:
                mine[call.bare, x.shape[1] :] = 0
            options: dict[str, Any] = dict(call.inputs)
            if self.embedded_scale is not None:
                options["guidance_scale"] = torch.full(
                    (len(mine),), self.embedded_scale, dtype=torch.float32, device=mine.device
                )
            t = torch.full((len(mine),), level.t, dtype=torch.float32, device=mine.device)
            if self.listener is not None:
                self.listener(call.texts)
            if self.control is not None:
                short = isinstance(self.unet, DeepCache) and self.unet.reads_finest(mine, **options)
                latents = mine[:, : x.shape[1]]
                options["residuals"] = self.control(latents, t, call, step, short)
            if self.features is not None:
                options["features"] = self.features(call, step)
            if self.image_prompts is not None:
                options["image_prompt"] = self.image_prompts(call)
            unet = self.unet if self.sharing is None else self.sharing.wrap(self.unet, call)
            with self.control.around(call, step) if self.control else nullcontext():
                outputs.append(unet(mine, t, **options))
        if len(outputs) == 1:
            return outputs[0]
        order = torch.tensor([row for call in self._calls for row in call.rows], device="cpu")
        return torch.cat(outputs)[order.argsort().to(outputs[0].device)]


class CallRow(NamedTuple):
    """One row of a U-Net call: x of a picture, under one text."""

    picture: int
    script: Script
    negative: bool
    bare: bool = False  # whether zeros stand for the further input channels


class UNetCall(NamedTuple):
    """The rows of one U-Net call."""

    rows: list[int]  # their numbers among all rows of a step
    pictures: Tensor  # the picture whose x each row reads
    inputs: dict[str, Tensor]  # the U-Net's other inputs, each (rows, …)
    texts: list[tuple[int, str] | None]  # for the listener
    bare: list[int]  # its rows in which zeros stand for the further input channels


def group_rows(
    rows: Sequence[CallRow], conditionings: Sequence[Conditioning], device: torch.device, most: int
) -> Iterator[UNetCall]:
    """Group the rows by the length of their contexts, and into calls of at most so many."""
    lengths = [one.length for one in conditionings]
    alike = ([i for i, it in enumerate(lengths) if it == each] for each in dict.fromkeys(lengths))
    for mine in (group[i : i + most] for group in alike for i in range(0, len(group), most)):
        parts = [conditionings[i].parts for i in mine]
        yield UNetCall(
            mine,
            torch.tensor([rows[i].picture for i in mine], device=device),
            {name: torch.stack([part[name] for part in parts]) for name in parts[0]},
            [None if rows[i].negative else (rows[i].picture, conditionings[i].text) for i in mine],
            [place for place, i in enumerate(mine) if rows[i].bare],
        )
