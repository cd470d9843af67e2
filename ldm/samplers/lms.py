"""LMS: the linear multistep method of k-diffusion (Crowson 2022), Adams-Bashforth in σ/α."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ldm.samplers.loop import Method
from ldm.samplers.moves import noise_in, ratio, weighted_sum
from ldm.samplers.weights import adams_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import Level

LMS_ORDER = 4


@dataclass
class LMS(Method):
    """Integrate the cubic through the last four slopes (Hairer et al. 1993, III.1, eq. 1.5).

        x_b/α_b = x_a/α_a + ∫_{ρ_a}^{ρ_b} P(ρ) dρ,   P(ρ_k) = ε̂_k,   ρ = σ/α

    The order grows over the first steps of a run, wherever it starts. diffusers' image-to-image
    takes weights of four slopes there and leaves out those that it does not have, which makes its
    first steps too long or too short.
    """

    past: list[tuple[Tensor, float]] = field(default_factory=list)  # (ε̂, ρ), newest last

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0, here, step = self.x0(x, a), ratio(a), ratio(b) - ratio(a)
        self.past.append((noise_in(x, x0, a), here))
        del self.past[:-LMS_ORDER]
        weights = adams_weights([(place - here) / step for _, place in self.past])
        slope = weighted_sum(weights, [slope for slope, _ in self.past])
        return (b.alpha / a.alpha * x).add_(slope, alpha=b.alpha * step), x0
