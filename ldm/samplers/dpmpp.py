"""DPM-Solver++ (Lu et al. 2022, "Fast Solver for Guided Sampling of Diffusion Models")."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ldm.samplers.loop import Method
from ldm.samplers.moves import ode_move, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import Level


@dataclass
class DPMpp2M(Method):
    """Two-step multistep solver, midpoint form (algorithm 2).

        x_b = σ_b/σ_a x_a − α_b (e^{−h} − 1) D,   h = λ_b − λ_a
        D = x̂₀ + h/(2 h₋) (x̂₀ − x̂₀₋),            h₋ = λ_a − λ₋

    The first step of a run, and the last (σ_b = 0, h = ∞), are of first order: D = x̂₀.
    """

    previous: tuple[Tensor, Level] | None = None  # x̂₀₋ and its level

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0, previous = self.x0(x, a), self.previous
        self.previous = x0, a
        if previous is None or not b.sigma:
            return ode_move(x, x0, a, b), x0
        before, level = previous
        r = (b.lam - a.lam) / (a.lam - level.lam) / 2
        shrink = b.sigma / a.sigma
        gain = b.alpha - shrink * a.alpha  # −α_b (e^{−h} − 1)
        return weighted_sum((shrink, gain * (1 + r), -gain * r), (x, x0, before)), x0


class PairStart(NamedTuple):
    """Where a pair of steps of ``DPMpp2S`` started."""

    x: Tensor
    x0: Tensor
    level: Level


@dataclass
class DPMpp2S(Method):
    """Singlestep solver in pairs of steps, as in diffusers (algorithm 1, r = h₁/(h₁ + h₂)).

    The first of a pair is of first order; the second goes from the start x_s of the first:

        x_b = σ_b/σ_s x_s − α_b (e^{−h} − 1) D,   h = λ_b − λ_s
        D = x̂₀,ₛ + h/(2 h₁) (x̂₀ − x̂₀,ₛ),          h₁ = λ_a − λ_s

    ``second`` holds the levels where the second of a pair begins; a run that starts at one of them
    takes a step of first order there. The last step (σ_b = 0) is of first order.
    """

    second: Container[Level] = ()
    start: PairStart | None = None

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0 = self.x0(x, a)
        if self.start is not None and b.sigma:
            start, before, s = self.start
            self.start = None
            r = (b.lam - s.lam) / (a.lam - s.lam) / 2
            d = weighted_sum((r, 1 - r), (x0, before))
            return ode_move(start, d, s, b), x0
        if a not in self.second:
            self.start = PairStart(x, x0, a)
        return ode_move(x, x0, a, b), x0
