"""DDPM: ancestral sampling (Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldm.errors import ArgumentError
from ldm.samplers.loop import Method

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import Level

MIN_VARIANCE = 1e-20  # lower bound of a variance before its logarithm is taken, as in diffusers


@dataclass
class DDPM(Method):
    """Draw from q(x_b | x_a, x̂₀), the posterior between two levels (eq. 6–7).

        x_b = α_b β/σ_a² x̂₀ + (α_a/α_b) σ_b²/σ_a² x_a + Σ g + √Σ ε,   β = 1 − α_a²/α_b²

    ``variance`` gives Σ; x̂₀ is clamped to ±clip. g is the gradient of a guidance, if there is one
    (Dhariwal & Nichol 2021, algorithm 1). At t = 0, g is left out and no noise is drawn.
    """

    clip: float | None = None
    variance_type: str | None = "fixed_small"

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0, v, gradient = self.denoise(x, a)
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        ratio = a.alpha / b.alpha
        beta = 1 - ratio**2
        shrink = (b.sigma / a.sigma) ** 2
        x = (b.alpha * beta / a.sigma**2) * x0 + ratio * shrink * x
        if a.t > 0:
            s = variance(self.variance_type, beta * shrink, beta, v)
            if gradient is not None:
                x = x + s * gradient
            x = x + s**0.5 * self.noise()
        return x, x0


def variance(kind: str | None, small: float, large: float, v: Tensor | None) -> float | Tensor:
    """Compute Σ of a step from β̃ = β σ_b²/σ_a² (``small``), β (``large``) and the network's v.

    "fixed_small" is β̃ and "fixed_large" β, the two choices of Ho et al., section 3.2; their
    variants "…_log" have the same values. "learned_range" lies between them (Nichol & Dhariwal
    2021, eq. 15):

        log Σ = w log β + (1 − w) log β̃,   w = (v + 1)/2

    In a respaced run, β and β̃ are those of its own steps (section 4 there). "learned" is v itself,
    as in diffusers.

    Raises ArgumentError for a learned variance without v.
    """
    if kind not in ("learned_range", "learned"):
        return large if kind in ("fixed_large", "fixed_large_log") else small
    if v is None:
        raise ArgumentError(f"variance_type {kind!r} needs v, which the network predicts")
    if kind == "learned":
        return v.clamp(min=MIN_VARIANCE)
    w = (v + 1) / 2
    return (w * math.log(large) + (1 - w) * math.log(max(small, MIN_VARIANCE))).exp()
