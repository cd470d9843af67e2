"""Latent consistency models (Luo et al. 2023, "Latent Consistency Models")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ldm.samplers.loop import Method

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import Level

N = TypeVar("N", float, "Tensor")
SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def boundary_scalings(t: N) -> tuple[N, N]:
    """Compute c_skip = σ²/(s² + σ²) and c_out = s/√(s² + σ²) with s = 10 t and σ = 0.5.

    They make f the identity at t = 0 (section 4.1).
    """
    s = TIMESTEP_SCALING * t
    return SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2), s / (s**2 + SIGMA_DATA**2) ** 0.5


@dataclass
class LCM(Method):
    """Jump to the clean image, then add fresh noise of the next level (algorithm 3).

        f = c_skip x_a + c_out x̂₀,   x_b = α_b f + σ_b ε

    The last step draws no noise.
    """

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        c_skip, c_out = boundary_scalings(a.t)
        x0 = c_skip * x + c_out * self.x0(x, a)
        return (b.alpha * x0 + b.sigma * self.noise() if b.sigma else x0), x0
