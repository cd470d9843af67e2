"""DEIS (Zhang & Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator")."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ldm.samplers.loop import Method
from ldm.samplers.moves import noise_in, weighted_sum
from ldm.samplers.weights import exponential_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import Level

DEIS_ORDER = 2  # "ρAB" of log ρ; diffusers' default


@dataclass
class DEIS(Method):
    """Exponential Adams-Bashforth: ε̂ as a line in log ρ through the last two (eq. 15).

        x_b/α_b = x_a/α_a + ∫_{ρ_a}^{ρ_b} P(log ρ) dρ,   P(log ρ_k) = ε̂_k,   ρ = σ/α

    The first step is of first order. So is the last one if it ends at σ_b = 0, or if ``careful``
    is set (diffusers' choice for runs of fewer than 15 steps).
    """

    careful: bool = False
    past: list[tuple[Tensor, float]] = field(default_factory=list)  # (ε̂, λ), newest last

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0, h = self.x0(x, a), b.lam - a.lam
        if h in (0, math.inf):  # a last step between equal levels, or to the clean image
            return x0 if h else x, x0
        self.past.append((noise_in(x, x0, a), a.lam))
        del self.past[: -1 if self.careful and b.t < 0 else -DEIS_ORDER]
        weights = exponential_weights([(lam - a.lam) / h for _, lam in self.past], -h)
        eps = weighted_sum(weights, [eps for eps, _ in self.past])
        return (b.alpha / a.alpha * x).add_(eps, alpha=b.sigma), x0
