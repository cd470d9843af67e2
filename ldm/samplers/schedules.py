"""Noise schedules: the spacing of a run's levels between its noisiest and its cleanest.

Each is a function of the checkpoint's scheduler, the number of steps n and two ratios σ/α. It
returns n decreasing levels from about the one to about the other; the clean image comes after them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ldm.errors import ArgumentError

if TYPE_CHECKING:
    from ldm.scheduler import DDPMScheduler, Level

RHO = 7  # Karras et al. 2022, section 3
BETA = 0.6  # Lee et al. 2024, section 4: α = β = 0.6
# Sabour, Fidler & Kreis 2024, "Align Your Steps": σ of the ten steps that they found, and the end.
AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)

Make = Callable[["DDPMScheduler", int, float, float], "list[Level]"]


class Schedule(NamedTuple):
    """One row of SCHEDULES."""

    label: str  # A1111's "Schedule type"
    make: Make | None  # None: the sampler's own levels
    about: str


def karras(scheduler: DDPMScheduler, n: int, high: float, low: float) -> list[Level]:
    """Lay (σ/α)^(1/ρ) evenly from high to low, ρ = 7 (Karras et al. 2022, eq. 5)."""
    start, end = high ** (1 / RHO), low ** (1 / RHO)
    return [scheduler.level_of((start + r * (end - start)) ** RHO) for r in _ramp(n)]


def exponential(scheduler: DDPMScheduler, n: int, high: float, low: float) -> list[Level]:
    """Lay log(σ/α) evenly from high to low: equal steps of λ (Lu et al. 2022, DPM-Solver)."""
    start, end = math.log(high), math.log(low)
    return [scheduler.level_of(math.exp(start + r * (end - start))) for r in _ramp(n)]


def beta(scheduler: DDPMScheduler, n: int, high: float, low: float) -> list[Level]:
    """Lay σ/α at even quantiles of a Beta(0.6, 0.6) distribution over [low, high].

    Source: Lee et al. 2024, "Beta Sampling is All You Need", as diffusers and A1111 read it
    (the paper's own is over timesteps).
    """
    quantiles = [beta_quantile(1 - r) for r in _ramp(n)]
    return [scheduler.level_of(low + q * (high - low)) for q in quantiles]


def sgm_uniform(scheduler: DDPMScheduler, n: int, high: float, low: float) -> list[Level]:
    """Lay t evenly from high to low in n + 1 points, without the last one (Stability's SGM)."""
    first, last = (scheduler.level_of(end).t for end in (high, low))
    return [log_level(scheduler, first + i / n * (last - first)) for i in range(n)]


def simple(scheduler: DDPMScheduler, n: int, high: float, low: float) -> list[Level]:
    """Take every (T/n)-th timestep of training, from the last (ComfyUI), not of high and low."""
    total = len(scheduler.ratios)
    if n > total:
        raise ArgumentError(
            f"num_inference_steps is {n}; schedule 'simple' has at most {total}, the timesteps of "
            "training"
        )
    return [log_level(scheduler, total - 1 - int(i * (total / n))) for i in range(n)]


def ddim_uniform(scheduler: DDPMScheduler, n: int, high: float, low: float) -> list[Level]:
    """Take every ⌊T/n⌋-th timestep of training, from the second (DDIM's own levels).

    Source: Song et al. 2020, "Denoising Diffusion Implicit Models", section D.3, with the offset of
    one in CompVis's code. ComfyUI and A1111 run a step more if n does not divide T.
    """
    total = len(scheduler.ratios)
    if n >= total:
        raise ArgumentError(
            f"num_inference_steps is {n}; schedule 'ddim_uniform' has at most {total - 1}, the "
            "timesteps of training without the first"
        )
    return [log_level(scheduler, 1 + i * (total // n)) for i in reversed(range(n))]


def ays(scheduler: DDPMScheduler, n: int, high: float, low: float) -> list[Level]:
    """Take the levels found for Stable Diffusion 1.5, log-linearly between them for n ≠ 10.

    Source: Sabour, Fidler & Kreis 2024, "Align Your Steps", and its quick start guide.
    Raises ArgumentError for a model that was trained on other levels of noise.
    """
    return _from_table(scheduler, n, AYS)


def ays_xl(scheduler: DDPMScheduler, n: int, high: float, low: float) -> list[Level]:
    """Take the levels found for SDXL, as ``ays``."""
    return _from_table(scheduler, n, AYS_XL)


SCHEDULES: dict[str, Schedule] = {
    "normal": Schedule("Automatic", None, "the sampler's own levels, by the model's spacing"),
    "karras": Schedule("Karras", karras, "more of the cleaner levels"),
    "exponential": Schedule("Exponential", exponential, "even in the logarithm of the noise"),
    "sgm_uniform": Schedule("SGM Uniform", sgm_uniform, "even in time, stops before the last"),
    "simple": Schedule("Simple", simple, "even in time, on timesteps of training"),
    "ddim_uniform": Schedule("DDIM", ddim_uniform, "DDIM's own levels, whatever the sampler"),
    "beta": Schedule("Beta", beta, "more of the cleanest and noisiest levels"),
    "ays": Schedule("Align Your Steps", ays, "found for SD 1.5 (for SDXL on such a model)"),
    "ays_xl": Schedule("Align Your Steps", ays_xl, "found for SDXL"),
}


def beta_quantile(p: float, a: float = BETA, b: float = BETA) -> float:
    """Find the x with I_x(a, b) = p by bisection, within 1e-15."""
    low, high = 0.0, 1.0
    if p >= 1:
        return high
    while (middle := (low + high) / 2) not in (low, high) and high - low > 1e-16:
        if incomplete_beta(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return middle


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Compute I_x(a, b), the regularised incomplete beta function, Beta(a, b)'s distribution.

    Source: Abramowitz & Stegun 26.5.4 as a power series (DLMF 8.17.7), where x ≤ ½ makes it
    converge by half in a term; 26.5.2 mirrors the rest.
    """
    if x > 0.5:
        return 1 - incomplete_beta(1 - x, b, a)
    term, total, k = x**a * math.gamma(a + b) / (math.gamma(a) * math.gamma(b)), 0.0, 0
    while abs(term) > 1e-17:
        total += term / (a + k)
        k += 1
        term *= (k - b) / k * x
    return total


def log_level(scheduler: DDPMScheduler, t: float) -> Level:
    """Return the level of t, with log(σ/α) linear between timesteps, as in k-diffusion.

    ``scheduler.level`` interpolates σ/α.
    """
    low = min(int(t), len(scheduler.ratios) - 2)
    below, above = (math.log(ratio) for ratio in scheduler.ratios[low : low + 2])
    return scheduler.level_of(math.exp(below + (t - low) * (above - below)))


def _ramp(n: int) -> list[float]:
    return [i / max(n - 1, 1) for i in range(n)]


def _from_table(scheduler: DDPMScheduler, n: int, table: Sequence[float]) -> list[Level]:
    largest = scheduler.ratios[-1]
    if abs(largest / table[0] - 1) > 0.01:
        raise ArgumentError(
            f"schedule 'ays' was found for noise of up to {table[0]} times the image, but this "
            f"model was trained on up to {largest:.4g}; 'karras' or 'exponential' suit any model"
        )
    logs = [math.log(ratio) for ratio in table]
    ratios = []
    for i in range(n):  # of n + 1 points; the last one is replaced by the clean image
        low, rest = divmod(i * (len(table) - 1), n)
        weight = rest / n
        ratios.append(math.exp((1 - weight) * logs[low] + weight * logs[low + 1]))
    return [scheduler.level_of(ratio) for ratio in ratios]
