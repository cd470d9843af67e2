"""Distillation of a guided model: to fewer steps (consistency), and to one pass for each step.

A teacher ε̂_w = ε̂(c) + w (ε̂(c) − ε̂(∅)) is guided with w = guidance_scale − 1 (Luo et al. 2023,
section 4.2); x̂₀ and ε̂ are affine in a network's output, so that guiding the output guides both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.samplers.lcm import boundary_scalings
from ldm.scheduler import DDPMScheduler, Levels

Predict = Callable[[Tensor, Tensor], Tensor]  # (x, t int64 (B,)) → a network's output


class SkippingDDIM:
    """DDIM's steps that skip k = T // N timesteps (Luo et al. 2023, section 4.3).

    They begin at k − 1, 2k − 1, …, as ``ldm.samplers.spacing.lcm_levels`` has them; the last one
    ends at t = 0.
    """

    def __init__(self, scheduler: DDPMScheduler, num_ddim_timesteps: int) -> None:
        """Lay out the steps. Raises ArgumentError for more steps than timesteps."""
        total = scheduler.config.num_train_timesteps
        if not 1 <= num_ddim_timesteps <= total:
            raise ArgumentError(
                f"num_ddim_timesteps is {num_ddim_timesteps}; it must be in [1, {total}], the "
                "timesteps of training; 50 is usual"
            )
        self.scheduler, self.steps = scheduler, num_ddim_timesteps
        self.k = total // num_ddim_timesteps

    def start(self, t: Tensor) -> Tensor:
        """Return the beginning of the step that any timesteps t, int64 (B,), are in."""
        return (t // self.k).clamp(max=self.steps - 1) * self.k + self.k - 1

    def end(self, t: Tensor) -> Tensor:
        """Return the end of the step that begins at t."""
        return (t - self.k).clamp(min=0)

    def trajectory(self, t: Tensor, share: Tensor) -> Tensor:
        """Return a random end of a step at or below the end of that which begins at t.

        share: (B,) in [0, 1), which of them.
        """
        return self.end((share * ((t + 1) // self.k)).long() * self.k + self.k - 1)

    def phase_end(self, t: Tensor, phases: int) -> Tensor:
        """Return the end of the phase that the steps beginning at t, int64 (B,), are in.

        Phases divide the trajectory where a sampler of so many steps begins them, as
        ``ldm.samplers.spacing.tcd_levels`` has it (Wang et al. 2024, "Phased consistency models",
        section 3.1).
        """
        inner = [self.steps - i * self.steps // phases for i in range(phases - 1, 0, -1)]
        ends = torch.tensor([0, *(i * self.k - 1 for i in inner)], device=t.device)
        return ends[torch.bucketize(t, ends[1:])]

    def step(self, output: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Move x from t to s by a network's output at t: x_s = α_s x̂₀ + σ_s ε̂; float32."""
        a, b = self.scheduler.levels(t, x), self.scheduler.levels(s, x)
        x0 = self.scheduler.to_x0(output, x, a)
        return b.alpha * x0 + b.sigma * self.scheduler.to_eps(output, x, a)


def guide(conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
    """Guide a teacher's outputs with w (B,): c + w (c − u)."""
    w = w.view(-1, *(1,) * (conditional.ndim - 1))
    return conditional + w * (conditional - unconditional)


def consistency_function(
    scheduler: DDPMScheduler, output: Tensor, x: Tensor, level: Levels
) -> Tensor:
    """Compute f(x, t) = c_skip x + c_out x̂₀ (Luo et al. 2023, section 4.1), float32."""
    c_skip, c_out = (c.view_as(level.alpha) for c in boundary_scalings(level.t))
    return c_skip * x + c_out * scheduler.to_x0(output, x, level)


def consistency_pair(
    solver: SkippingDDIM,
    student: Predict,
    teacher: Predict,
    target: Predict,
    x: Tensor,
    t: Tensor,
    s: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what is to agree: f of the student at t, and of the target one teacher's step later.

    Without ``s``, that is a clean picture (Luo et al. 2023, algorithm 1). With the times s (B,),
    none of them above the step's end, f(x, t, s) = α_s x̂₀ + σ_s ε̂ is a point of the trajectory
    (Zheng et al. 2024, section 4.1).

    x: noised latents (B, …) at t, int64 (B,), where a step of the solver begins.
    student, teacher, target: networks; the teacher's output is guided. Only the student gets a
    gradient.
    """
    scheduler = solver.scheduler

    def f(output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        if s is not None:
            return solver.step(output, x, t, s)
        return consistency_function(scheduler, output, x, scheduler.levels(t, x))

    predicted = f(student(x, t), x, t)
    with torch.no_grad():
        end = solver.end(t)
        x_end = solver.step(teacher(x, t), x, t, end)
        return predicted, f(target(x_end, end), x_end, end)


def distance(
    a: Tensor, b: Tensor, kind: str, huber_c: float = 0.001, mask: Tensor | None = None
) -> Tensor:
    """Return the distance of each row, (B, …) → (B,), a mean over values.

    "l2": squares. "huber": √((a − b)² + c²) − c, the pseudo-Huber loss of Song & Dhariwal 2023
    (section 3.3) for each value by itself, as diffusers has it.
    mask: (B, 1, …), weights of the values.
    """
    squares = (a.float() - b.float()).square()
    if kind == "huber":
        squares = (squares + huber_c**2).sqrt() - huber_c
    return (squares if mask is None else mask * squares).flatten(1).mean(1)
