"""Moves from one noise level to another, given a clean image: the parts of most methods' steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import Level


def ratio(level: Level) -> float:
    """Return σ/α, the σ of Karras et al. 2022, whose x is our x/α. The level's α must not be 0."""
    return level.sigma / level.alpha


def noise_in(x: Tensor, x0: Tensor, a: Level) -> Tensor:
    """Compute ε̂ = (x − α x̂₀)/σ, in Karras' terms the slope dx/dσ of the probability-flow ODE."""
    return x.sub(x0, alpha=a.alpha).div_(a.sigma)


def ode_move(x: Tensor, x0: Tensor, a: Level, b: Level) -> Tensor:
    """Compute x_b = σ_b/σ_a x_a + α_b (1 − e^{−h}) x̂₀,   e^{−h} = (σ_b/α_b)/(σ_a/α_a).

    Source: Lu et al. 2022 (DPM-Solver++), eq. 9 with x̂₀ held: exact if x̂₀ is constant.
    """
    shrink = b.sigma / a.sigma
    return (shrink * x).add_(x0, alpha=b.alpha - shrink * a.alpha)


def sde_move(x: Tensor, x0: Tensor, a: Level, b: Level, eps: Tensor) -> Tensor:
    """Compute x_b = σ_b/σ_a e^{−h} x_a + α_b (1 − e^{−2h}) x̂₀ + σ_b √(1 − e^{−2h}) ε.

    Source: Lu et al. 2022 (DPM-Solver++), eq. 18 (SDE-DPM-Solver++-1): the reverse SDE with x̂₀
    held. It is DDIM's step with η = 1, and k-diffusion's ancestral Euler step.
    """
    g = ratio(b) / ratio(a)
    kept = 1 - g * g
    moved = (g * b.sigma / a.sigma * x).add_(x0, alpha=b.alpha * kept)
    return moved.add_(eps, alpha=b.sigma * math.sqrt(kept))


def weighted_sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Compute Σ w_k x_k, with one pass over the memory for each x_k."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total.add_(value, alpha=weight)
    return total
