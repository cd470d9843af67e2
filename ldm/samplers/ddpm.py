"""DDPM: ancestral sampling (Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ldm.samplers.loop import tell

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.samplers.loop import Denoise, Noise
    from ldm.scheduler import Level

LEAST = 1e-20  # of a variance whose logarithm is taken, as in diffusers


def ddpm(
    denoise: Denoise,
    x: Tensor,
    a: Level,
    b: Level,
    past: list[Any],
    noise: Noise,
    clip: float | None = None,
    variance_type: str | None = "fixed_small",
) -> tuple[Tensor, Tensor]:
    """Draw from q(x_b | x_a, x̂₀), the posterior between two levels (eq. 6–7).

        x_b = α_b β/σ_a² x̂₀ + (α_a/α_b) σ_b²/σ_a² x_a + Σ g + √Σ ε,   β = 1 − α_a²/α_b²

    Σ is as ``variance`` says; x̂₀ is clamped to ±clip. g is the gradient of a guidance, where there
    is one (Dhariwal & Nichol 2021, algorithm 1). At t = 0 neither g counts nor is noise drawn.
    """
    x0, v, gradient = tell(denoise, x, a)
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
    ratio = a.alpha / b.alpha
    beta = 1 - ratio**2
    shrink = (b.sigma / a.sigma) ** 2
    x = (b.alpha * beta / a.sigma**2) * x0 + ratio * shrink * x
    if a.t > 0:
        s = variance(variance_type, beta * shrink, beta, v)
        if gradient is not None:
            x = x + s * gradient
        x = x + s**0.5 * noise()
    return x, x0


def variance(kind: str | None, small: float, large: float, v: Tensor | None) -> float | Tensor:
    """Σ of a step, given β̃ = β σ_b²/σ_a² (``small``), β (``large``), and what the network says.

    "fixed_small" is β̃ and "fixed_large" β, the two choices of Ho et al., section 3.2; their
    variants "…_log", which only count in another way, are the same. "learned_range" lies between
    them (Nichol & Dhariwal 2021, eq. 15):

        log Σ = w log β + (1 − w) log β̃,   w = (v + 1)/2

    Of a respaced run β and β̃ are those of its own steps (section 4 there). "learned" is v itself,
    as diffusers reads it.
    """
    if kind == "learned_range":
        w = (v + 1) / 2
        return (w * math.log(large) + (1 - w) * math.log(max(small, LEAST))).exp()
    if kind == "learned":
        return v.clamp(min=LEAST)
    return large if kind in ("fixed_large", "fixed_large_log") else small
