"""PNDM without Runge-Kutta steps, or PLMS: the default of Stable Diffusion 1.x checkpoints.

Source: Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ldm.samplers.loop import Method
from ldm.samplers.moves import ode_move, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import DDPMScheduler, Level

# Adams-Bashforth weights of 2, 3 and 4 predictions, newest first (eq. 12 has those of 4).
ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass
class PNDM(Method):
    """A DDIM step (eq. 11) along a mean of the last four predictions (eq. 12).

    The mean is of the network's raw output, as in diffusers: with v-prediction the mean of ε̂
    would differ. The first step of a run calls the network twice, at a and at b, and takes the
    mean of both (Heun's method). diffusers writes that as a repeated timestep, which image-to-image
    cuts off there (the latents are then some 6 % too noisy for their timestep); ours warms up
    wherever the run starts. From noise, "leading" spacing gives diffusers' picture; "trailing" does
    where T/n rounds down; "linspace" does not, as diffusers' b is then not its repeated timestep.
    """

    scheduler: DDPMScheduler  # turns x̂₀ into the network's output and back
    past: list[Tensor] = field(default_factory=list)  # raw outputs, newest first

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        self.past.insert(0, self._raw(x, a))
        del self.past[4:]
        if len(self.past) > 1:
            return self._move(weighted_sum(ADAMS_BASHFORTH[len(self.past)], self.past), x, a, b)
        moved, x0 = self._move(self.past[0], x, a, b)
        if b.t < 0:  # a run of one step: b is the end, which is no timestep of the network
            return moved, x0
        return self._move((self.past[0] + self._raw(moved, b)) / 2, x, a, b)

    def _raw(self, x: Tensor, level: Level) -> Tensor:
        return self.scheduler.from_x0(self.x0(x, level), x, level)

    def _move(self, mean: Tensor, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0 = self.scheduler.to_x0(mean, x, a)
        return ode_move(x, x0, a, b), x0
