"""DDIM (Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models"); Euler is its η = 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldm.samplers.loop import Method

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import Level


@dataclass
class DDIM(Method):
    """Keep x̂₀ and ε̂, change the level (eq. 12, with s of eq. 16).

        x_b = α_b x̂₀ + √(σ_b² − s²) ε̂ + s ε,   s = η (σ_b/σ_a) √(1 − α_a²/α_b²)

    η = 0 is deterministic; η = 1 adds as much noise as DDPM. x̂₀ is clamped to ±clip after ε̂ has
    been computed from it, as in diffusers. The shift by a guidance's gradient g, x̂₀ + σ²/α g and
    ε̂ − σ g, comes after that (Dhariwal & Nichol 2021, algorithm 2): clamping the shifted x̂₀ would
    keep the shift in ε̂ only.

    In x/α and σ/α, η = 0 is Euler's method for the probability-flow ODE (Karras et al. 2022,
    algorithm 1), so "euler" is this step on Euler's levels.
    """

    eta: float = 0.0
    clip: float | None = None

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        s = self.eta * b.sigma / a.sigma * math.sqrt(1 - (a.alpha / b.alpha) ** 2)
        shrink = math.sqrt(b.sigma**2 - s**2) / a.sigma
        if self.clip is None:
            x0 = self.x0(x, a)
            x = (shrink * x).add_(x0, alpha=b.alpha - shrink * a.alpha)
        else:
            x0, _, gradient = self.denoise(x, a)
            x = (shrink * x).add_(x0, alpha=-shrink * a.alpha)
            x0 = x0.clamp(-self.clip, self.clip)
            x = x.add_(x0, alpha=b.alpha)
            if gradient is not None and a.alpha:
                x = x.add_(gradient, alpha=a.sigma**2 * (b.alpha / a.alpha - shrink))
        return x.add_(self.noise(), alpha=s) if self.eta else x, x0
