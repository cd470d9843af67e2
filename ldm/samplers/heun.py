"""Heun's method (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative
Models")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm.samplers.moves import noise_in, ode_move, ratio

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.samplers.loop import Denoise, Noise
    from ldm.scheduler import Level


def heun(
    denoise: Denoise, x: Tensor, a: Level, b: Level, past: list[Any], noise: Noise
) -> tuple[Tensor, Tensor]:
    """A step of Euler to b, then once more along the mean of both slopes (algorithm 1).

        x_b/α_b = x_a/α_a + (ρ_b − ρ_a) (ε̂_a + ε̂_b)/2,   ρ = σ/α

    Two calls of the network; one on the last step, where σ_b = 0.
    """
    x0 = denoise(x, a)
    moved = ode_move(x, x0, a, b)
    if not b.sigma:
        return moved, x0
    slope = noise_in(x, x0, a)
    x0 = denoise(moved, b)
    slope = slope.add_(noise_in(moved, x0, b)).div_(2)
    step = ratio(b) - ratio(a)
    return (b.alpha / a.alpha * x).add_(slope, alpha=b.alpha * step), x0
