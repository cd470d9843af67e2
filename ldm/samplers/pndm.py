"""PNDM without Runge-Kutta steps, also known as PLMS (Liu et al. 2022, "Pseudo Numerical Methods
for Diffusion Models on Manifolds"): the default of Stable Diffusion 1.x checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm.samplers.moves import mix, ode_move

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.samplers.loop import Denoise, Noise
    from ldm.scheduler import DDPMScheduler, Level

# Adams-Bashforth weights of 2, 3 and 4 predictions, newest first (eq. 12 has those of 4).
WEIGHTS = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def pndm(
    denoise: Denoise,
    x: Tensor,
    a: Level,
    b: Level,
    past: list[Any],
    noise: Noise,
    scheduler: DDPMScheduler,
) -> tuple[Tensor, Tensor]:
    """A DDIM step (eq. 11) along a mean of the last four predictions (eq. 12).

    What is averaged is the network's raw output, as in diffusers: with v-prediction the mean of ε̂
    would be another. The first step of a run calls the network twice, at a and at b, and takes the
    mean of both (Heun's method). diffusers writes that as a repeated timestep, which image-to-image
    cuts off there (the latents are then some 6 % too noisy for their timestep); ours warms up
    wherever the run starts. From noise, "leading" spacing gives diffusers' picture; "trailing" does
    where T/n rounds down; "linspace" does not, as diffusers' b is then not its repeated timestep.
    """

    def raw(x: Tensor, level: Level) -> Tensor:
        return scheduler.from_x0(denoise(x, level), x, level)

    def move(mean: Tensor) -> tuple[Tensor, Tensor]:
        x0 = scheduler.to_x0(mean, x, a)
        return ode_move(x, x0, a, b), x0

    past.insert(0, raw(x, a))
    del past[4:]
    if len(past) > 1:
        return move(mix(WEIGHTS[len(past)], past))
    moved, x0 = move(past[0])
    if b.t < 0:  # a run of one step: b is the end, where the network knows no timestep
        return moved, x0
    return move((past[0] + raw(moved, b)) / 2)
