"""DPM2 and DPM2 a: k-diffusion's midpoint methods.

Sources: DPM-Solver-2 (Lu et al. 2022, "DPM-Solver"), algorithm 2 of Karras et al. 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldm.samplers.loop import Method
from ldm.samplers.moves import noise_in, ode_move, ratio

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import DDPMScheduler, Level


@dataclass
class DPM2(Method):
    """Take half a step of Euler in log ρ, then the whole step along the slope found there.

        x_b/α_b = x_a/α_a + (ρ_d − ρ_a) ε̂(√(ρ_a ρ_d)) + √(ρ_b² − ρ_d²) ε,   ρ = σ/α

    Without noise, ρ_d = ρ_b. "ancestral" goes below, to ρ_d = ρ_b²/ρ_a, and adds noise, so that its
    middle is ρ_b (Song et al. 2021, DDIM's η = 1). It calls the network twice a step, except for
    the last one, which calls it once and draws no noise.
    """

    scheduler: DDPMScheduler  # gives the level in the middle
    ancestral: bool = False

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0 = self.x0(x, a)
        if not b.sigma:
            return ode_move(x, x0, a, b), x0
        down = ratio(b) ** 2 / ratio(a) if self.ancestral else ratio(b)
        middle = self.scheduler.level_of(math.sqrt(ratio(a) * down))
        half = ode_move(x, x0, a, middle)
        x0 = self.x0(half, middle)
        slope, step = noise_in(half, x0, middle), down - ratio(a)
        x = (b.alpha / a.alpha * x).add_(slope, alpha=b.alpha * step)
        if self.ancestral:
            x = x.add_(self.noise(), alpha=b.alpha * math.sqrt(ratio(b) ** 2 - down**2))
        return x, x0
