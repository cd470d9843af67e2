"""Heun's method.

Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldm.samplers.loop import Method
from ldm.samplers.moves import noise_in, ode_move, ratio

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import Level


@dataclass
class Heun(Method):
    """Take a step of Euler to b, then once more along the mean of both slopes (algorithm 1).

        x_b/α_b = x_a/α_a + (ρ_b − ρ_a) (ε̂_a + ε̂_b)/2,   ρ = σ/α

    It calls the network twice a step, except for the last one (σ_b = 0), which calls it once.
    """

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0 = self.x0(x, a)
        moved = ode_move(x, x0, a, b)
        if not b.sigma:
            return moved, x0
        slope = noise_in(x, x0, a)
        x0 = self.x0(moved, b)
        slope = slope.add_(noise_in(moved, x0, b)).div_(2)
        step = ratio(b) - ratio(a)
        return (b.alpha / a.alpha * x).add_(slope, alpha=b.alpha * step), x0
