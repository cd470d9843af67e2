"""UniPC (Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldm.samplers.moves import mix, ode_move
from ldm.samplers.weights import exponential

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.samplers.loop import Denoise, Noise
    from ldm.scheduler import Level

NO_LEVELS: Mapping[Any, int] = {}


def unipc(
    denoise: Denoise,
    x: Tensor,
    a: Level,
    b: Level,
    past: list[Any],
    noise: Noise,
    order: int = 2,
    left: Mapping[Level, int] = NO_LEVELS,
) -> tuple[Tensor, Tensor]:
    """Correct the step before by what the network says of its end, then predict the next one.

        x_b = σ_b/σ_a x_a + α_b ∫₀¹ h e^{(u−1)h} P(u) du,   P(u_k) = x̂₀,ₖ,   u = (λ − λ_a)/h

    Both UniC and UniP (algorithms 1 and 2, with x̂₀ and B(h) = e^h − 1) solve for the weights that
    make this exact for polynomials P; UniC's P also goes through the new x̂₀ at u = 1. Where one
    weight is left to find, the paper takes ½: P is then m₀ plus half of the difference (UniC-1),
    or DPM++ 2M's (UniP-2). The network is called once: x̂₀ is not asked for anew after correcting.

    `left` counts the steps of the run that are left, from each level on: the order falls to 1 at
    the end.
    """
    x0 = denoise(x, a)
    if past:
        x = _corrected(past, x0, a)
    order = min(order, len(past) + 1, left.get(a, order)) if b.sigma else 1
    # What the corrector needs: where this step starts, the x̂₀ it goes by, and its order.
    past.append((x, x0, a, order))
    del past[:-3]
    h, older = b.lam - a.lam, past[-2 : -order - 1 : -1]
    if order == 1:
        return ode_move(x, x0, a, b), x0
    if order == 2:
        ((_, before, c, _),) = older
        r = h / (a.lam - c.lam) / 2
        return ode_move(x, mix((1 + r, -r), (x0, before)), a, b), x0
    return _integrated(x, a, b, [(x0, a), *((value, c) for _, value, c, _ in older)]), x0


def _corrected(past: list[Any], x0: Tensor, b: Level) -> Tensor:
    """UniC: the step that ended at b, now that x̂₀ there is known."""
    x, start, a, order = past[-1]
    if order == 1:
        return ode_move(x, (start + x0) / 2, a, b)
    older = past[-2 : -order - 1 : -1]
    return _integrated(x, a, b, [(x0, b), (start, a), *((value, c) for _, value, c, _ in older)])


def _integrated(x: Tensor, a: Level, b: Level, values: list[tuple[Tensor, Level]]) -> Tensor:
    h = b.lam - a.lam
    weights = exponential([(level.lam - a.lam) / h for _, level in values], h)
    mean = mix(weights, [value for value, _ in values])
    return (b.sigma / a.sigma * x).add_(mean, alpha=b.alpha)
