"""The noise levels that a run visits, as diffusers' scheduler of the same method chooses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from ldm.samplers.loop import Pair
    from ldm.scheduler import DDPMScheduler, Level


def timesteps(
    scheduler: DDPMScheduler, n: int, spacing: str, *, spare: int = 0, whole: bool = True
) -> list[float]:
    """Lay out n decreasing timesteps in [0, T − 1] (Lin et al. 2023, table 2).

    `spare` lays that many more points and leaves the cleanest out; `whole` rounds.
    Raises ArgumentError if n steps do not fit, CheckpointError for an unknown spacing.
    """
    total, offset = scheduler.config.num_train_timesteps, scheduler.config.steps_offset
    points = n + spare

    def misfit() -> ArgumentError:
        return ArgumentError(
            f"num_inference_steps is {n}; it must be at least 1 and fit into the {total} timesteps "
            f"of training ({spacing} spacing, steps_offset {offset}); 20 to 50 is usual"
        )

    if n < 1 or points > total:
        raise misfit()
    if spacing == "linspace":
        step = (total - 1) / max(points - 1, 1)
        ts = [min(i * step, total - 1) for i in reversed(range(points))]
    elif spacing == "leading":
        ts = [i * (total // points) + offset for i in reversed(range(points))]
    elif spacing == "trailing":
        # As numpy.arange(total, 0, -total / n) computes it: its last bit decides how .5 rounds.
        delta = (total - total / n) - total
        ts = [round(total + i * delta) - 1 for i in range(n)]
    else:
        raise CheckpointError(
            f"timestep_spacing is {spacing!r}; expected 'leading', 'trailing' or 'linspace'"
        )
    if ts[0] > total - 1:
        raise misfit()
    return [round(t) if whole else t for t in ts[:n]]


def chain(scheduler: DDPMScheduler, n: int, spacing: str) -> list[Pair]:
    """Step from each timestep to the next one, and last to the clean image (DDPM)."""
    return pairs([scheduler.level(t) for t in timesteps(scheduler, n, spacing)], scheduler)


def strides(scheduler: DDPMScheduler, n: int, spacing: str) -> list[Pair]:
    """Step from t to t − T//n, which need not be the next timestep (DDIM and PNDM).

    If it is not ("linspace" above all, "trailing" if n does not divide T), x and the level that the
    network is given drift apart, and the picture is worse; but it is diffusers' picture.
    """
    ts = timesteps(scheduler, n, spacing)
    stride = scheduler.config.num_train_timesteps // n
    end = scheduler.level(-1) if scheduler.config.set_alpha_to_one else _almost_clean(scheduler)
    return [(scheduler.level(t), scheduler.level(t - stride) if t >= stride else end) for t in ts]


def lcm_levels(scheduler: DDPMScheduler, n: int, spacing: str, strength: float = 1.0) -> list[Pair]:
    """Take n timesteps of a distillation, from the noisiest; or from a strength on."""
    total, taught = scheduler.config.num_train_timesteps, scheduler.config.original_inference_steps
    below = int(taught * strength)
    if not 1 <= n <= below:
        raise ArgumentError(
            f"num_inference_steps is {n}; it must be in [1, {below}], the steps that the "
            f"model was distilled on{' times strength' if strength < 1 else ''}; 4 to 8 are usual"
        )
    ts = [(below - i * below // n) * (total // taught) - 1 for i in range(n)]
    return pairs([scheduler.level(t) for t in ts], scheduler)


def tcd_levels(scheduler: DDPMScheduler, n: int, spacing: str) -> list[Pair]:
    """Take the timesteps of ``lcm_levels``, but stop at ᾱ₀ (TCD)."""
    *steps, (a, _) = lcm_levels(scheduler, n, spacing)
    return [*steps, (a, _almost_clean(scheduler))]


def euler_levels(scheduler: DDPMScheduler, n: int, spacing: str) -> list[Pair]:
    """Chain fractional timesteps (Euler and k-diffusion's other methods)."""
    ts = timesteps(scheduler, n, spacing, whole=False)
    return pairs([_finite_level(scheduler, t) for t in ts], scheduler)


def dpmpp_levels(scheduler: DDPMScheduler, n: int, spacing: str) -> list[Pair]:
    """Chain whole timesteps, the noisiest n of n + 1 (DPM++ and UniPC)."""
    ts = timesteps(scheduler, n, spacing, spare=0 if spacing == "trailing" else 1)
    return pairs([_finite_level(scheduler, t) for t in ts], scheduler)


def singlestep_levels(scheduler: DDPMScheduler, n: int, spacing: str) -> list[Pair]:
    """Chain as ``dpmpp_levels``; diffusers has "linspace" for DPM++ 2S, whatever the config."""
    return dpmpp_levels(scheduler, n, "linspace")


def deis_levels(scheduler: DDPMScheduler, n: int, spacing: str) -> list[Pair]:
    """Chain as ``dpmpp_levels``, but stop at ᾱ₀ (DEIS)."""
    *steps, (a, _) = dpmpp_levels(scheduler, n, spacing)
    return [*steps, (a, _almost_clean(scheduler))]


def pairs(levels: list[Level], scheduler: DDPMScheduler) -> list[Pair]:
    """Pair each level with the next, the last with the clean image."""
    return list(zip(levels, [*levels[1:], scheduler.level(-1)], strict=True))


def _almost_clean(scheduler: DDPMScheduler) -> Level:
    """Return ᾱ₀, the cleanest level of training, as the end of a run."""
    return scheduler.level(0)._replace(t=scheduler.level(-1).t)


def _finite_level(scheduler: DDPMScheduler, t: float) -> Level:
    """Return ``scheduler.level(t)``, but with a finite λ also at zero terminal SNR."""
    level = scheduler.level(t)
    return level if level.alpha else scheduler.level_of(scheduler.ratios[-1])._replace(t=level.t)
