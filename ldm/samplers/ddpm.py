"""DDPM: ancestral sampling (Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.samplers.loop import Denoise, Noise
    from ldm.scheduler import Level


def ddpm(
    denoise: Denoise,
    x: Tensor,
    a: Level,
    b: Level,
    past: list[Any],
    noise: Noise,
    clip: float | None = None,
    variance_type: str = "fixed_small",
) -> tuple[Tensor, Tensor]:
    """Draw from q(x_b | x_a, x̂₀), the posterior between two levels (eq. 6–7).

        x_b = α_b β/σ_a² x̂₀ + (α_a/α_b) σ_b²/σ_a² x_a + √variance ε,   β = 1 − α_a²/α_b²

    The variance is β σ_b²/σ_a² ("fixed_small") or β ("fixed_large"), the two choices of section
    3.2. x̂₀ is clamped to ±clip. Nothing is drawn at t = 0.
    """
    x0 = denoise(x, a)
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
    ratio = a.alpha / b.alpha
    beta = 1 - ratio**2
    shrink = (b.sigma / a.sigma) ** 2
    x = (b.alpha * beta / a.sigma**2) * x0 + ratio * shrink * x
    if a.t > 0:
        variance = beta if variance_type == "fixed_large" else beta * shrink
        x = x + math.sqrt(variance) * noise()
    return x, x0
