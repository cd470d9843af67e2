"""Samplers: a run is a schedule (``plan``), a denoiser, and a method (``bind``).

    scheduler = DDPMScheduler(config)
    name, schedule = from_config(config)
    steps = plan(scheduler, name, num_inference_steps, schedule)
    x = noise() * first_noise_scale(scheduler, name, steps)
    for x, index, x0 in sample(bind(scheduler, name, steps=steps), denoise, x, steps, noise):
        ...

Image-to-image starts at ``k = start_index(n, strength)`` from α x₀ + σ ε at ``steps[k][0]`` and
runs ``steps[k:]``. Everything ends in the picture that diffusers draws from the same noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ldm.errors import ArgumentError, CheckpointError
from ldm.samplers.loop import (
    Denoise,
    Denoised,
    DrawNoise,
    Method,
    NewMethod,
    Pair,
    sample,
    start_index,
)
from ldm.samplers.moves import ratio
from ldm.samplers.names import find_sampler, find_schedule, unknown_sampler
from ldm.samplers.schedules import SCHEDULES
from ldm.samplers.spacing import lcm_levels, pairs
from ldm.samplers.table import SAMPLERS, Sampler, Steps

if TYPE_CHECKING:
    from ldm.config import SchedulerConfig
    from ldm.scheduler import DDPMScheduler

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "Choice",
    "Denoise",
    "Denoised",
    "DrawNoise",
    "Method",
    "NewMethod",
    "Pair",
    "Sampler",
    "bind",
    "choose",
    "find_sampler",
    "find_schedule",
    "first_noise_scale",
    "from_config",
    "lcm_levels",
    "plan",
    "read_names",
    "sample",
    "start_index",
]
OWN_SCHEDULES = {  # of scheduler_config.json
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}


class Choice(NamedTuple):
    """A sampler and its schedule: keys of SAMPLERS and SCHEDULES."""

    name: str
    schedule: str = "normal"


def choose(config: SchedulerConfig, sampler: str | None, schedule: str | None = None) -> Choice:
    """Find the sampler and schedule of names, in any case; None: as in ``scheduler_config.json``.

    sampler: ours, A1111's or diffusers' name, maybe with a schedule at its end ("euler_karras").
    schedule: a key of SCHEDULES or A1111's label.
    Raises ArgumentError for an unknown name, two different schedules, or a schedule that the
    sampler cannot use; CheckpointError as ``from_config`` does.
    """
    name, wanted = read_names(sampler, schedule)
    name = name or from_config(config).name
    choice = Choice(name, wanted or _own_schedule(config, SAMPLERS[name]))
    _check_schedule(*choice)
    return choice


def read_names(sampler: str | None, schedule: str | None) -> tuple[str | None, str | None]:
    """Find the keys of SAMPLERS and SCHEDULES for names as in ``choose``; None for no name.

    Raises ArgumentError as ``choose`` does, as far as is possible without a model.
    """
    name, named = (None, None) if sampler is None else find_sampler(sampler)
    wanted = None if schedule is None else find_schedule(schedule)
    if named and wanted and named != wanted:
        raise ArgumentError(
            f"sampler is {sampler!r}, but schedule is {schedule!r}; leave one of them out"
        )
    wanted = wanted or named
    if name and wanted:
        _check_schedule(name, wanted)
    return name, wanted


def from_config(config: SchedulerConfig) -> Choice:
    """Find the sampler that a checkpoint's ``scheduler_config.json`` names.

    Raises CheckpointError for an unsupported class, or an unsupported setting of it.
    """
    way_out = f"choose a sampler with --sampler {{{','.join(SAMPLERS)}}}"
    wrong = {
        name: [key for key, values in row.honours.items() if getattr(config, key) not in values]
        for name, row in SAMPLERS.items()
        if row.class_name == config.sampler_class
    }
    if not wrong:
        raise CheckpointError(
            f"scheduler_config.json: _class_name is {config.sampler_class!r}, which is not "
            f"supported; {way_out}"
        )
    name = min(wrong, key=lambda name: len(wrong[name]))
    for key in wrong[name]:
        raise CheckpointError(
            f"scheduler_config.json: {key} of {config.sampler_class} is "
            f"{getattr(config, key)!r}; only "
            f"{' or '.join(map(repr, SAMPLERS[name].honours[key]))} is supported; {way_out}"
        )
    return Choice(name, _own_schedule(config, SAMPLERS[name]))


def plan(
    scheduler: DDPMScheduler, name: str, num_inference_steps: int, schedule: str | None = None
) -> list[Pair]:
    """Lay out the (from, to) levels of a whole run, one pair a step, noisiest first.

    Args:
        scheduler: the checkpoint's; its config's ``timestep_spacing`` counts for every sampler.
        name: a key of SAMPLERS.
        num_inference_steps: how many pairs, at least 1.
        schedule: a key of SCHEDULES; None as in the checkpoint's config.

    Raises ArgumentError for an unknown name, a number of steps that does not fit, or a schedule
    that the method cannot use; CheckpointError if the network cannot start from pure noise.
    """
    row = _row(name)
    if schedule is None:
        schedule = _own_schedule(scheduler.config, row)
    schedule = find_schedule(schedule)
    _check_schedule(name, schedule)
    make = SCHEDULES[schedule].make
    within_own = row.within_own and schedule in OWN_SCHEDULES.values()
    if make is None or within_own:
        steps = row.levels(scheduler, num_inference_steps, _spacing(scheduler, row))
    if make is not None:
        if num_inference_steps < 1:
            raise ArgumentError(
                f"num_inference_steps is {num_inference_steps}; it must be at least 1"
            )
        ends = scheduler.ratios[-1], scheduler.ratios[0]
        if within_own:
            ends = ratio(steps[0][0]), ratio(steps[-1][0])
        levels = make(scheduler, num_inference_steps, *ends)
        whole = row.whole.get(schedule, float)
        cosine = scheduler.config.beta_schedule == "squaredcos_cap_v2"
        if cosine and row.class_name == "DPMSolverMultistepScheduler":
            whole = int  # diffusers does not round there, but only cuts off
        steps = pairs([level._replace(t=float(whole(level.t))) for level in levels], scheduler)
    if steps[0][0].alpha == 0 and scheduler.config.prediction_type == "epsilon":
        raise CheckpointError(
            f"scheduler_config.json: prediction_type 'epsilon' says nothing at zero SNR, where "
            f"{name!r} starts with this timestep_spacing; set timestep_spacing to 'leading', or "
            "prediction_type to 'v_prediction' if the model was trained so"
        )
    return steps


def bind(scheduler: DDPMScheduler, name: str, eta: float = 0.0, steps: Steps = ()) -> NewMethod:
    """Return what makes the object of sampler `name` for each run: see ``sample``.

    It has the checkpoint's settings (clipping, variance). η in [0, 1] scales the noise that "ddim"
    and "tcd" add. `steps` is the whole plan, also if only its end is run: some methods are of lower
    order near the end. Raises ArgumentError for an unknown name, η out of range, or η with another
    sampler.
    """
    row = _row(name)
    if not 0 <= eta <= 1:
        raise ArgumentError(f"eta is {eta}; it must be in [0, 1]: 0 adds no noise")
    if eta and not row.eta:
        names = " and ".join(repr(key) for key, row in SAMPLERS.items() if row.eta)
        raise ArgumentError(f"eta is {eta}, but sampler {name!r} has no eta; only {names} have")
    return row.bind(scheduler, eta, steps)


def first_noise_scale(scheduler: DDPMScheduler, name: str, steps: list[Pair]) -> float:
    """Return the factor of N(0, I) with which `steps` start from noise and draw diffusers' picture.

    It is 1, or σ of the first level if diffusers leaves out α x₀ and its variance ("euler").
    """
    row = _row(name)
    scaled = row.scaled_noise and _spacing(scheduler, row) != "leading"
    return steps[0][0].sigma if scaled else 1.0


def _row(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise unknown_sampler(name)
    return SAMPLERS[name]


def _spacing(scheduler: DDPMScheduler, row: Sampler) -> str:
    return scheduler.config.timestep_spacing or row.spacing


def _own_schedule(config: SchedulerConfig, row: Sampler) -> str:
    """Return the schedule in the config, if diffusers' class of this sampler obeys it."""
    named = [name for key, name in OWN_SCHEDULES.items() if getattr(config, key)]
    if len(named) > 1:
        raise CheckpointError(
            f"scheduler_config.json: it asks for {' and '.join(named)} levels at once; keep one of "
            f"{', '.join(OWN_SCHEDULES)}"
        )
    return named[0] if named and row.obeys_schedule else "normal"


def _check_schedule(name: str, schedule: str) -> None:
    row = _row(name)
    if schedule not in row.schedules:
        raise ArgumentError(
            f"schedule {schedule!r} does not suit sampler {name!r}: {row.unfit}; choose one of "
            f"{', '.join(row.schedules)}, or another sampler"
        )
