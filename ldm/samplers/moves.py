"""From one noise level to another, given a clean image: what most methods' steps are made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import Level


def ratio(level: Level) -> float:
    """σ/α: the σ of Karras et al. 2022, whose x is our x/α. The level's α must not be 0."""
    return level.sigma / level.alpha


def noise_in(x: Tensor, x0: Tensor, a: Level) -> Tensor:
    """ε̂ = (x − α x̂₀)/σ, in Karras' terms the slope dx/dσ of the probability-flow ODE."""
    return (x - a.alpha * x0) / a.sigma


def ode_move(x: Tensor, x0: Tensor, a: Level, b: Level) -> Tensor:
    """x_b = σ_b/σ_a x_a + α_b (1 − e^{−h}) x̂₀,   e^{−h} = (σ_b/α_b)/(σ_a/α_a).

    Source: Lu et al. 2022 (DPM-Solver++), eq. 9 with x̂₀ held: exact for an x̂₀ that stays.
    """
    shrink = b.sigma / a.sigma
    return shrink * x + (b.alpha - shrink * a.alpha) * x0


def sde_move(x: Tensor, x0: Tensor, a: Level, b: Level, eps: Tensor) -> Tensor:
    """x_b = σ_b/σ_a e^{−h} x_a + α_b (1 − e^{−2h}) x̂₀ + σ_b √(1 − e^{−2h}) ε.

    Source: Lu et al. 2022 (DPM-Solver++), eq. 18 (SDE-DPM-Solver++-1): the reverse SDE with x̂₀
    held. It is DDIM's step with η = 1, and k-diffusion's ancestral Euler step.
    """
    g = ratio(b) / ratio(a)
    kept = 1 - g * g
    return g * b.sigma / a.sigma * x + b.alpha * kept * x0 + b.sigma * math.sqrt(kept) * eps
