"""What ControlNets add to the U-Net's activations at each step of a run.

The pictures' features are computed once; a ControlNet at scale 0, and steps outside of its range,
compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.control.control_lllite import Addition, ControlLLLite, Network, additions
from ldm.control.controlnet import ControlNet, scaled
from ldm.denoiser import UNetCall
from ldm.unet import Residuals


@dataclass(frozen=True, eq=False)
class ControlUse:
    """A ControlNet in one run.

    Attributes:
        network, hint: the picture that it reads: (1 or B, channels, H, W) in [0, 1].
        scale: factor of what it adds.
        start, end: fractions of the run's steps between which it is used.
        call: computes in the network's place, such as its recording; None is the network.
    """

    network: Network
    hint: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    call: Callable[..., list[Tensor]] | None = None

    def covers(self, step: int, steps: int) -> bool:
        """Whether it is used at a step, from 1, of so many; compared as diffusers does."""
        return self.scale != 0 and (step - 1) / steps >= self.start and step / steps <= self.end

    def factors(self, step: int, steps: int) -> tuple[float, ...]:
        """Return what the picture's features depend on at a step, beside the picture."""
        return ()

    def embed(self, factors: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Compute the features of the picture: (1 or B, width, h, w)."""
        assert isinstance(self.network, ControlNet)
        return self.network.embed_hint(self.hint.to(device, dtype))

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return further inputs of the network."""
        return {}


class Control:
    """All ControlNets of a run: called for each U-Net call, it returns what is added there."""

    def __init__(
        self, uses: Sequence[ControlUse], steps: int, guess_mode: bool, dtype: torch.dtype
    ) -> None:
        """Compute nothing yet.

        steps: of the run. guess_mode: see ``ldm.request``. dtype: of the U-Net's inputs.
        """
        self.uses, self.steps, self.guess_mode, self.dtype = list(uses), steps, guess_mode, dtype
        self._chosen: tuple[UNetCall, Tensor, dict[str, Tensor]] | None = None  # of the last call
        # Features of each use's picture, and the network's further inputs.
        self._hints: dict[tuple[int, tuple[float, ...]], Tensor] = {}
        self._inputs: dict[int, dict[str, Tensor]] = {}
        self._lllites: dict[int, dict[str, Tensor]] = {}  # likewise of ControlNet-LLLites

    @torch.no_grad()
    def __call__(
        self, x: Tensor, t: Tensor, call: UNetCall, step: int, short: bool = False
    ) -> Residuals | None:
        """Return the sum of what the ControlNets of a step give for the rows of a call, or None.

        x: (rows, C, h, w), the latents of each row; t: (rows,); step: from 1.
        short: compute only what is added to the finest skip connection (see
            ``ldm.fast.deepcache``).
        """
        total: list[Tensor] | None = None
        for index, use in enumerate(self.uses):
            if not use.covers(step, self.steps) or isinstance(use.network, ControlLLLite):
                continue
            hint = self._hint(index, use, step, x.device)
            found = self._compute(index, use, x, t, call, hint, short)
            if found is not None:
                pairs = zip(total or found, found, strict=True)
                total = found if total is None else [a + b for a, b in pairs]
        if total is None:
            return None
        return Residuals(total, None) if short else Residuals(total[:-1], total[-1])

    @torch.no_grad()
    def around(self, call: UNetCall, step: int) -> AbstractContextManager[None]:
        """Return the context of a U-Net call, in which ControlNet-LLLites change its layers."""
        found = []
        for index, use in enumerate(self.uses):
            if isinstance(use.network, ControlLLLite) and use.covers(step, self.steps):
                if index not in self._lllites:
                    picture = use.hint.to(call.pictures.device, self.dtype)
                    self._lllites[index] = use.network.embed_hint(picture)
                shown = [use.scale * (t is not None or not self.guess_mode) for t in call.texts]
                factors = torch.tensor(shown, dtype=self.dtype, device=call.pictures.device)
                features = self._lllites[index]
                rows = factors[:, None, None]
                found.append(Addition(use.network, features, call.pictures, rows))
        return additions(found) if found else nullcontext()

    def _compute(
        self,
        index: int,
        use: ControlUse,
        x: Tensor,
        t: Tensor,
        call: UNetCall,
        hint: Tensor,
        short: bool,
    ) -> list[Tensor] | None:
        assert isinstance(use.network, ControlNet)
        pooled = use.network.config.global_pool_conditions
        pictures, inputs = call.pictures, call.inputs
        guided = [row for row, text in enumerate(call.texts) if text is not None]
        # What only the texts' rows get, is nothing for the negative prompts'.
        some = (self.guess_mode or pooled) and len(guided) < len(call.texts)
        if some:
            if not guided:
                return None
            rows, inputs = self._choose(call, guided)
            x, t, pictures = x[rows], t[rows], pictures[rows]
        if len(hint) > 1:
            hint = hint[pictures]
        if short:
            found, count = use.network.finest(x, hint), len(use.network.skip_channels) + 1
        else:
            inputs = inputs | self._inputs[index]
            found, count = (use.call or use.network)(x, t, hint=hint, **inputs), None
        found = scaled(found, use.scale, self.guess_mode and not pooled, count)
        return [spread(y, rows, len(call.texts)) for y in found] if some else found

    def _choose(self, call: UNetCall, guided: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the numbers of these rows and their inputs: the same tensors at every step."""
        if self._chosen is None or self._chosen[0] is not call:
            rows = torch.tensor(guided, device=call.pictures.device)
            chosen = {name: value[rows] for name, value in call.inputs.items()}
            self._chosen = call, rows, chosen
        return self._chosen[1:]

    def _hint(self, index: int, use: ControlUse, step: int, device: torch.device) -> Tensor:
        factors = use.factors(step, self.steps)
        if (index, factors) not in self._hints:
            self._hints[index, factors] = use.embed(factors, device, self.dtype)
            self._inputs[index] = use.inputs(device)
        return self._hints[index, factors]


def spread(y: Tensor, rows: Tensor, count: int) -> Tensor:
    """Put rows in their places among ``count``; the others are 0."""
    result = y.new_zeros((count, *y.shape[1:]))
    result[rows] = y
    return result
