"""Trajectory consistency models (Zheng et al. 2024, "Trajectory Consistency Distillation")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldm.samplers.loop import Method
from ldm.samplers.moves import ode_move

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import DDPMScheduler, Level


@dataclass
class TCD(Method):
    """Jump along the trajectory to a level s below b, then add fresh noise up to b (section 4.2).

        s = ⌊(1 − γ) t_b⌋,   x_s = α_s x̂₀ + σ_s ε̂,   x_b = α_b/α_s x_s + √(1 − α_b²/α_s²) ε

    γ, which diffusers calls η, is the share of the step that noise makes good: 0 is DDIM and draws
    no noise, 1 jumps to almost clean latents as LCM does. The last step draws no noise.
    """

    scheduler: DDPMScheduler
    eta: float = 0.0

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0 = self.x0(x, a)
        if not self.eta or b.t < 0:
            return ode_move(x, x0, a, b), x0
        # In float32, as diffusers rounds it: at a whole number the last bit decides.
        s = self.scheduler.alphas_cumprod.new_tensor(b.t).mul(1 - self.eta).floor()
        clean = self.scheduler.level(float(s))
        g = b.alpha / clean.alpha
        x = (g * ode_move(x, x0, a, clean)).add_(self.noise(), alpha=math.sqrt(1 - g * g))
        return x, x0
