"""UniPC (Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ldm.samplers.loop import Method
from ldm.samplers.moves import ode_move, weighted_sum
from ldm.samplers.weights import exponential_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.scheduler import Level


class Predicted(NamedTuple):
    """What the corrector needs of a step: where it started, with which x̂₀ and of which order."""

    x: Tensor
    x0: Tensor
    level: Level
    order: int


@dataclass
class UniPC(Method):
    """Correct the step before with the network's output at its end, then predict the next one.

        x_b = σ_b/σ_a x_a + α_b ∫₀¹ h e^{(u−1)h} P(u) du,   P(u_k) = x̂₀,ₖ,   u = (λ − λ_a)/h

    Both UniC and UniP (algorithms 1 and 2, with x̂₀ and B(h) = e^h − 1) solve for the weights that
    make this exact for polynomials P; UniC's P also goes through the new x̂₀ at u = 1. If one
    weight is left to find, the paper takes ½: P is then m₀ plus half of the difference (UniC-1),
    or DPM++ 2M's (UniP-2). The network is called once: x̂₀ is not recomputed after correcting.

    ``left`` counts the steps of the run that are left, from each level on: the order falls to 1 at
    the end.
    """

    order: int = 2
    left: Mapping[Level, int] = field(default_factory=dict)
    past: list[Predicted] = field(default_factory=list)  # newest last

    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        x0 = self.x0(x, a)
        if self.past:
            x = self._corrected(x0, a)
        order = min(self.order, len(self.past) + 1, self.left.get(a, self.order)) if b.sigma else 1
        self.past.append(Predicted(x, x0, a, order))
        del self.past[:-3]
        h, older = b.lam - a.lam, self.past[-2 : -order - 1 : -1]
        if order == 1:
            return ode_move(x, x0, a, b), x0
        if order == 2:
            (before,) = older
            r = h / (a.lam - before.level.lam) / 2
            return ode_move(x, weighted_sum((1 + r, -r), (x0, before.x0)), a, b), x0
        return _integrated(x, a, b, [(x0, a), *((one.x0, one.level) for one in older)]), x0

    def _corrected(self, x0: Tensor, b: Level) -> Tensor:
        """Redo the step that ended at b by UniC, now that x̂₀ there is known."""
        x, start, a, order = self.past[-1]
        if order == 1:
            return ode_move(x, (start + x0) / 2, a, b)
        older = [(one.x0, one.level) for one in self.past[-2 : -order - 1 : -1]]
        return _integrated(x, a, b, [(x0, b), (start, a), *older])


def _integrated(x: Tensor, a: Level, b: Level, values: list[tuple[Tensor, Level]]) -> Tensor:
    """Integrate the polynomial through (x̂₀, level) from a to b."""
    h = b.lam - a.lam
    weights = exponential_weights([(level.lam - a.lam) / h for _, level in values], h)
    mean = weighted_sum(weights, [value for value, _ in values])
    return (b.sigma / a.sigma * x).add_(mean, alpha=b.alpha)
