"""Exponential moving average of the parameters (Ho et al. 2020, appendix B)."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """Keeps θ̄ ← d·θ̄ + (1 − d)·θ with d = min(decay, (1 + step) / (10 + step)), in float32.

    The rising d lets the average follow quickly at first; a fixed 0.999 would show the random
    initial weights for a thousand steps. Only parameters are averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = list(self.model.parameters())
        torch._foreach_lerp_(averages, list(model.parameters()), 1 - decay)
