"""DPM-Solver++ with noise (Lu et al. 2022, "DPM-Solver++", section 6; Crowson's k-diffusion)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ldm.samplers.loop import Method
from ldm.samplers.moves import ode_move, ratio, sde_move, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import DDPMScheduler, Level


@dataclass
class DPMpp2MSDE(Method):
    """SDE-DPM-Solver++(2M), midpoint form (eq. 19): D of ``DPMpp2M`` in the step of the SDE.

    The first step of a run and the last (σ_b = 0) are of first order. As in diffusers, every step
    draws noise, also the last, which does not use it.
    """

    previous: tuple[Tensor, Level] | None = None  # x̂₀₋ and its level

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0 = d = self.x0(x, a)
        if self.previous is not None and b.sigma:
            before, level = self.previous
            r = (b.lam - a.lam) / (a.lam - level.lam) / 2
            d = weighted_sum((1 + r, -r), (x0, before))
        self.previous = x0, a
        return sde_move(x, d, a, b, self.noise()), x0


@dataclass
class DPMpp3MSDE(Method):
    """DPM++ 3M SDE of k-diffusion: x̂₀'s first and second differences in the step of the SDE.

        x_b = … + α_b (φ₁ x̂₀ + φ₂ D₁ + φ₃ D₂),   h' = 2 (λ_b − λ_a)
        φ₁ = 1 − e^{−h'},   φ₂ = 1 − φ₁/h',   φ₃ = ½ − φ₂/h'

    φ₃ has ½ − …; diffusers (solver_order 3, "sde-dpmsolver++") has −½ − …, which does not vanish
    with h', so that its pictures differ. D₂ is a divided difference, half of the derivative that
    the paper's φ₃ is the weight of, so that the method converges with order 2.

    The first step of a run and the last (σ_b = 0) use x̂₀ alone, the second x̂₀ and D₁. Every step
    draws noise.
    """

    past: list[tuple[Tensor, Level]] = field(default_factory=list)  # (x̂₀, level), newest last

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0 = d = self.x0(x, a)
        if self.past and b.sigma:
            h = b.lam - a.lam
            phi_1 = -math.expm1(-2 * h)
            phi_2 = 1 - phi_1 / (2 * h)
            phi_3 = 0.5 - phi_2 / (2 * h)
            (newer, c), *older = reversed(self.past)
            r = (a.lam - c.lam) / h
            slope = (x0 - newer) / r
            if older:
                ((oldest, e),) = older
                q = (c.lam - e.lam) / h
                bend = (slope - (newer - oldest) / q) / (r + q)
                slope = slope + r * bend
                d = d + phi_3 / phi_1 * bend
            d = d + phi_2 / phi_1 * slope
        self.past.append((x0, a))
        del self.past[:-2]
        return sde_move(x, d, a, b, self.noise()), x0


@dataclass
class DPMppSDE(Method):
    """DPM++ SDE of k-diffusion: to the middle in λ, then the whole step with x̂₀ found there.

    Both moves are the SDE's (``sde_move``), driven by one Brownian motion W over ρ = σ/α: the
    noise of the half step is W's increment ΔW₁ over it, that of the whole step ΔW₁ + ΔW₂, each
    divided by the root of the distance. The increments are drawn one after the other, and are
    independent; k-diffusion and diffusers draw them from a tree, so that W depends neither on the
    steps nor on a generator's order: the same distribution, other pictures.

    It calls the network twice a step, except for the last one, which calls it once and draws no
    noise.
    """

    scheduler: DDPMScheduler  # gives the level in the middle

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0 = self.x0(x, a)
        if not b.sigma:
            return ode_move(x, x0, a, b), x0
        middle = self.scheduler.level_of(math.sqrt(ratio(a) * ratio(b)))
        first = self.noise()
        x0 = self.x0(sde_move(x, x0, a, middle, first), middle)
        share = (ratio(a) - ratio(middle)) / (ratio(a) - ratio(b))  # of the variance
        whole = weighted_sum((math.sqrt(share), math.sqrt(1 - share)), (first, self.noise()))
        return sde_move(x, x0, a, b, whole), x0


@dataclass
class DPMpp2SAncestral(Method):
    """DPM++ 2S a of k-diffusion: DPM-Solver++(2S) (algorithm 1, r = ½) to below b, then noise.

        x_b/α_b = ρ_d/ρ_a x_a/α_a + (1 − ρ_d/ρ_a) x̂₀(ρ_b) + √(ρ_b² − ρ_d²) ε

    with ρ = σ/α and ρ_d = ρ_b²/ρ_a, so that the middle of the step in log ρ, where x̂₀ is found, is
    ρ_b itself. It calls the network twice a step, except for the last one, which calls it once and
    draws no noise.
    """

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0 = self.x0(x, a)
        if not b.sigma:
            return ode_move(x, x0, a, b), x0
        x0 = self.x0(ode_move(x, x0, a, b), b)
        g = ratio(b) / ratio(a)
        y = g * g * x / a.alpha + (1 - g * g) * x0
        return b.alpha * y + b.sigma * math.sqrt(1 - g * g) * self.noise(), x0
