"""DEIS (Zhang & Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ldm.samplers.moves import mix, noise_in
from ldm.samplers.weights import exponential

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.samplers.loop import Denoise, Noise
    from ldm.scheduler import Level

ORDER = 2  # "ρAB" of log ρ; diffusers' default


def deis(
    denoise: Denoise,
    x: Tensor,
    a: Level,
    b: Level,
    past: list[Any],
    noise: Noise,
    careful: bool = False,
) -> tuple[Tensor, Tensor]:
    """Exponential Adams-Bashforth: ε̂ as a line in log ρ through the last two (eq. 15).

        x_b/α_b = x_a/α_a + ∫_{ρ_a}^{ρ_b} P(log ρ) dρ,   P(log ρ_k) = ε̂_k,   ρ = σ/α

    The first step is of first order, and so is the last if it ends at σ_b = 0 or if "careful"
    (diffusers' choice for runs of fewer than 15 steps).
    """
    x0, h = denoise(x, a), b.lam - a.lam
    if h in (0, math.inf):  # a last step between equal levels, or to the clean image
        return x0 if h else x, x0
    past.append((noise_in(x, x0, a), a.lam))
    del past[: -1 if careful and b.t < 0 else -ORDER]
    weights = exponential([(lam - a.lam) / h for _, lam in past], -h)
    eps = mix(weights, [eps for eps, _ in past])
    return (b.alpha / a.alpha * x).add_(eps, alpha=b.sigma), x0
