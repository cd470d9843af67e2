"""DPM-Solver++ (Lu et al. 2022, "Fast Solver for Guided Sampling of Diffusion Models")."""

from __future__ import annotations

from math import expm1
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.samplers.loop import Denoise, Noise
    from ldm.scheduler import Level


def dpmpp_2m(
    denoise: Denoise, x: Tensor, a: Level, b: Level, past: list[Any], noise: Noise
) -> tuple[Tensor, Tensor]:
    """Two-step multistep solver, midpoint form (algorithm 2).

        x_b = σ_b/σ_a x_a − α_b (e^{−h} − 1) D,   h = λ_b − λ_a
        D = x̂₀ + h/(2 h₋) (x̂₀ − x̂₀₋),            h₋ = λ_a − λ₋

    The first step of a run, and the last (σ_b = 0, h = ∞), are of first order: D = x̂₀.
    """
    x0, h = denoise(x, a), b.lam - a.lam
    d = x0
    if past and b.sigma:
        before, level = past.pop()
        d = x0 + h / (a.lam - level.lam) / 2 * (x0 - before)
    past.append((x0, a))
    return b.sigma / a.sigma * x - b.alpha * expm1(-h) * d, x0
