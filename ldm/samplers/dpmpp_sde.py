"""DPM-Solver++ with noise (Lu et al. 2022, "DPM-Solver++", section 6; Crowson's k-diffusion)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ldm.samplers.moves import mix, ode_move, ratio, sde_move

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.samplers.loop import Denoise, Noise
    from ldm.scheduler import DDPMScheduler, Level


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, a: Level, b: Level, past: list[Any], noise: Noise
) -> tuple[Tensor, Tensor]:
    """SDE-DPM-Solver++(2M), midpoint form (eq. 19): ``dpmpp_2m``'s D in the step of the SDE.

    The first step of a run and the last (σ_b = 0) are of first order. As in diffusers, noise is
    drawn on every step, also on the last, which does not use it.
    """
    x0 = d = denoise(x, a)
    if past and b.sigma:
        before, level = past.pop()
        r = (b.lam - a.lam) / (a.lam - level.lam) / 2
        d = mix((1 + r, -r), (x0, before))
    past.append((x0, a))
    return sde_move(x, d, a, b, noise()), x0


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, a: Level, b: Level, past: list[Any], noise: Noise
) -> tuple[Tensor, Tensor]:
    """DPM++ 3M SDE of k-diffusion: x̂₀'s first and second differences in the step of the SDE.

        x_b = … + α_b (φ₁ x̂₀ + φ₂ D₁ + φ₃ D₂),   h' = 2 (λ_b − λ_a)
        φ₁ = 1 − e^{−h'},   φ₂ = 1 − φ₁/h',   φ₃ = ½ − φ₂/h'

    φ₃ has ½ − …; diffusers (solver_order 3, "sde-dpmsolver++") has −½ − …, which does not vanish
    with h', so that its pictures differ. D₂ is a divided difference, half of the derivative that
    the paper's φ₃ is the weight of, so that the method converges with order 2.

    The first step of a run and the last (σ_b = 0) go by x̂₀ alone, the second by x̂₀ and D₁. Noise
    is drawn on every step.
    """
    x0 = d = denoise(x, a)
    if past and b.sigma:
        h = b.lam - a.lam
        phi_1 = -math.expm1(-2 * h)
        phi_2 = 1 - phi_1 / (2 * h)
        phi_3 = 0.5 - phi_2 / (2 * h)
        (newer, c), *older = reversed(past)
        r = (a.lam - c.lam) / h
        slope = (x0 - newer) / r
        if older:
            ((oldest, e),) = older
            q = (c.lam - e.lam) / h
            bend = (slope - (newer - oldest) / q) / (r + q)
            slope = slope + r * bend
            d = d + phi_3 / phi_1 * bend
        d = d + phi_2 / phi_1 * slope
    past.append((x0, a))
    del past[:-2]
    return sde_move(x, d, a, b, noise()), x0


def dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    a: Level,
    b: Level,
    past: list[Any],
    noise: Noise,
    scheduler: DDPMScheduler,
) -> tuple[Tensor, Tensor]:
    """DPM++ SDE of k-diffusion: to the middle in λ, then the whole step with x̂₀ found there.

    Both moves are the SDE's (``sde_move``), driven by one Brownian motion W over ρ = σ/α: the
    noise of the half step is W's increment ΔW₁ over it, that of the whole step ΔW₁ + ΔW₂, each
    divided by the root of the distance. The increments are drawn one after the other, and are
    independent; k-diffusion and diffusers draw them from a tree, so that W does not depend on the
    steps, but neither on a generator's order: the same distribution, other pictures.

    Two calls of the network; one on the last step, from which nothing is drawn.
    """
    x0 = denoise(x, a)
    if not b.sigma:
        return ode_move(x, x0, a, b), x0
    middle = scheduler.level_of(math.sqrt(ratio(a) * ratio(b)))
    first = noise()
    x0 = denoise(sde_move(x, x0, a, middle, first), middle)
    share = (ratio(a) - ratio(middle)) / (ratio(a) - ratio(b))  # of the variance
    whole = mix((math.sqrt(share), math.sqrt(1 - share)), (first, noise()))
    return sde_move(x, x0, a, b, whole), x0


def dpmpp_2s_a(
    denoise: Denoise, x: Tensor, a: Level, b: Level, past: list[Any], noise: Noise
) -> tuple[Tensor, Tensor]:
    """DPM++ 2S a of k-diffusion: DPM-Solver++(2S) (algorithm 1, r = ½) to below b, then noise.

        x_b/α_b = ρ_d/ρ_a x_a/α_a + (1 − ρ_d/ρ_a) x̂₀(ρ_b) + √(ρ_b² − ρ_d²) ε

    with ρ = σ/α and ρ_d = ρ_b²/ρ_a, so that the middle of the step in log ρ, where x̂₀ is found, is
    ρ_b itself. Two calls of the network; one on the last step, from which nothing is drawn.
    """
    x0 = denoise(x, a)
    if not b.sigma:
        return ode_move(x, x0, a, b), x0
    x0 = denoise(ode_move(x, x0, a, b), b)
    g = ratio(b) / ratio(a)
    y = g * g * x / a.alpha + (1 - g * g) * x0
    return b.alpha * y + b.sigma * math.sqrt(1 - g * g) * noise(), x0
