"""DDIM (Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models"); Euler is its η = 0."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ldm.samplers.loop import tell

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.samplers.loop import Denoise, Noise
    from ldm.scheduler import Level


def ddim(
    denoise: Denoise,
    x: Tensor,
    a: Level,
    b: Level,
    past: list[Any],
    noise: Noise,
    eta: float = 0.0,
    clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Keep x̂₀ and ε̂, change the level (eq. 12, with s of eq. 16).

        x_b = α_b x̂₀ + √(σ_b² − s²) ε̂ + s ε,   s = η (σ_b/σ_a) √(1 − α_a²/α_b²)

    η = 0 is deterministic; η = 1 adds as much noise as DDPM. x̂₀ is clamped to ±clip after ε̂ has
    been read off, as diffusers does; the shift of a guidance's gradient g, x̂₀ + σ²/α g and ε̂ − σ g,
    comes after that (Dhariwal & Nichol 2021, algorithm 2): clamped, it would leave ε̂'s half alone.

    In x/α and σ/α, η = 0 is Euler's method for the probability-flow ODE (Karras et al. 2022,
    algorithm 1), so "euler" is this step on Euler's levels.
    """
    s = eta * b.sigma / a.sigma * math.sqrt(1 - (a.alpha / b.alpha) ** 2)
    shrink = math.sqrt(b.sigma**2 - s**2) / a.sigma
    if clip is None:
        x0 = denoise(x, a)
        x = (shrink * x).add_(x0, alpha=b.alpha - shrink * a.alpha)
    else:
        x0, _, gradient = tell(denoise, x, a)
        x = (shrink * x).add_(x0, alpha=-shrink * a.alpha)
        x0 = x0.clamp(-clip, clip)
        x = x.add_(x0, alpha=b.alpha)
        if gradient is not None and a.alpha:
            x = x.add_(gradient, alpha=a.sigma**2 * (b.alpha / a.alpha - shrink))
    return x.add_(noise(), alpha=s) if eta else x, x0
