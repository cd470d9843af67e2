"""Exponential moving average of the parameters (Ho et al. 2020, appendix B)."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ldm.training.sharding import full_tensor, is_sharded, local, spread_like

M_co = TypeVar("M_co", bound=nn.Module, covariant=True)


class EMA(Generic[M_co]):
    """Keeps θ̄ ← d·θ̄ + (1 − d)·θ with d = min(decay, (1 + step) / (10 + step)), in float32.

    The rising d lets the average follow quickly at first; a fixed 0.999 would show the random
    initial weights for a thousand steps. Only parameters are averaged. An average with decay 0 is
    the model itself, of which no copy is kept, unless it is going to be sharded.
    """

    def __init__(self, model: M_co, decay: float, sharded: bool = False) -> None:
        self.decay, self.model = decay, model
        self.averages: dict[str, Tensor] = {}
        if decay > 0 or sharded:
            self.model = copy.deepcopy(model).eval().requires_grad_(False)
            self.averages = dict(self.model.named_parameters())

    def follow(self, model: nn.Module) -> None:
        """Move the averages to the device of ``model``, or shard them over processes as it is."""
        parameters = dict(model.named_parameters())
        if not self.averages:
            return
        if is_sharded(model):
            self.averages = {
                name: spread_like(parameter.detach(), self.averages[name])
                for name, parameter in parameters.items()
            }
        else:
            self.model.to(next(iter(parameters.values())).device)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the averages once; ``step`` counts from 0."""
        if not self.averages:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local(average) for average in self.averages.values()]
        torch._foreach_lerp_(averages, [local(p) for p in model.parameters()], 1 - decay)

    @torch.no_grad()
    def whole(self) -> M_co:
        """Return the averaged model, on this process alone. Where sharded, all must call it."""
        for name, parameter in self.model.named_parameters():
            if parameter is not self.averages.get(name, parameter):
                parameter.copy_(full_tensor(self.averages[name]))
        return self.model
