"""Samplers: a run is a schedule (``plan``), a denoiser, and a method's step (``bind``).

    scheduler = DDPMScheduler(config)
    name, karras = from_config(config)
    steps = plan(scheduler, name, num_inference_steps, karras)
    x = noise() * first_noise_scale(scheduler, name, steps)
    for x, index, x0 in sample(bind(scheduler, name), denoise, x, steps, noise):
        ...

Image-to-image starts at ``k = start_index(n, strength)`` from α x₀ + σ ε at ``steps[k][0]`` and
runs ``steps[k:]``. Everything ends in the picture that diffusers draws from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ldm.errors import ArgumentError, CheckpointError
from ldm.samplers.ddim import ddim
from ldm.samplers.ddpm import ddpm
from ldm.samplers.dpmpp import dpmpp_2m
from ldm.samplers.lcm import lcm
from ldm.samplers.loop import Denoise, Noise, Pair, Step, sample, start_index
from ldm.samplers.pndm import pndm
from ldm.samplers.spacing import chain, dpmpp_levels, euler_levels, lcm_levels, strides

if TYPE_CHECKING:
    from ldm.config import SchedulerConfig
    from ldm.scheduler import DDPMScheduler

__all__ = [
    "SAMPLERS",
    "Choice",
    "Denoise",
    "Noise",
    "Pair",
    "Sampler",
    "Step",
    "bind",
    "first_noise_scale",
    "from_config",
    "plan",
    "sample",
    "schedule_type",
    "start_index",
]


@dataclass(frozen=True)
class Sampler:
    """One row of SAMPLERS."""

    label: str  # as A1111 writes it into a picture
    class_name: str  # diffusers' scheduler of the same method
    bind: Callable[[DDPMScheduler, float], Step]  # (scheduler, η) → step
    levels: Callable[[DDPMScheduler, int, str, bool], list[Pair]]  # (…, n, spacing, karras)
    spacing: str  # where scheduler_config.json names none
    karras: bool = False  # may use Karras levels
    eta: bool = False  # takes η
    scaled_noise: bool = False  # starts from σ ε, unless the spacing is "leading"
    # Config values that the method honours; from_config refuses others.
    honours: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


class Choice(NamedTuple):
    """A sampler and its levels."""

    name: str
    karras: bool


def _clip(scheduler: DDPMScheduler) -> float | None:
    return scheduler.config.clip_sample_range if scheduler.config.clip_sample else None


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        label="DDPM",
        class_name="DDPMScheduler",
        bind=lambda scheduler, eta: partial(
            ddpm, clip=_clip(scheduler), variance_type=scheduler.config.variance_type
        ),
        levels=chain,
        spacing="leading",
        honours={"variance_type": ("fixed_small", "fixed_large"), "thresholding": (False,)},
    ),
    "ddim": Sampler(
        label="DDIM",
        class_name="DDIMScheduler",
        bind=lambda scheduler, eta: partial(ddim, eta=eta, clip=_clip(scheduler)),
        levels=strides,
        spacing="leading",
        eta=True,
        honours={"thresholding": (False,)},
    ),
    "dpmpp_2m": Sampler(
        label="DPM++ 2M",
        class_name="DPMSolverMultistepScheduler",
        bind=lambda scheduler, eta: dpmpp_2m,
        levels=dpmpp_levels,
        spacing="linspace",
        karras=True,
        honours={
            "algorithm_type": ("dpmsolver++",),
            "solver_order": (2,),
            "solver_type": ("midpoint",),
            "final_sigmas_type": ("zero",),
            "thresholding": (False,),
        },
    ),
    "pndm": Sampler(
        label="PLMS",
        class_name="PNDMScheduler",
        bind=lambda scheduler, eta: partial(pndm, scheduler=scheduler),
        levels=strides,
        spacing="leading",
        honours={"skip_prk_steps": (True,)},
    ),
    "euler": Sampler(
        label="Euler",
        class_name="EulerDiscreteScheduler",
        bind=lambda scheduler, eta: ddim,
        levels=euler_levels,
        spacing="linspace",
        karras=True,
        scaled_noise=True,
        honours={"final_sigmas_type": ("zero",)},
    ),
    "euler_a": Sampler(
        label="Euler a",
        class_name="EulerAncestralDiscreteScheduler",
        bind=lambda scheduler, eta: partial(ddim, eta=1.0),
        levels=euler_levels,
        spacing="linspace",
        scaled_noise=True,
    ),
    "lcm": Sampler(
        label="LCM",
        class_name="LCMScheduler",
        bind=lambda scheduler, eta: lcm,
        levels=lcm_levels,
        spacing="leading",
        honours={"thresholding": (False,)},
    ),
}


def from_config(config: SchedulerConfig) -> Choice:
    """The sampler that a checkpoint's ``scheduler_config.json`` asks for.

    Raises CheckpointError for a class, or a setting of it, that we do not draw with.
    """
    way_out = f"choose a sampler with --sampler {{{','.join(SAMPLERS)}}}"
    names = {row.class_name: name for name, row in SAMPLERS.items()}
    if config.sampler_class not in names:
        raise CheckpointError(
            f"scheduler_config.json: _class_name is {config.sampler_class!r}, which is not "
            f"supported; {way_out}"
        )
    name = names[config.sampler_class]
    for key, values in SAMPLERS[name].honours.items():
        if getattr(config, key) not in values:
            raise CheckpointError(
                f"scheduler_config.json: {key} of {config.sampler_class} is "
                f"{getattr(config, key)!r}; only {' or '.join(map(repr, values))} is supported; "
                f"{way_out}"
            )
    return Choice(name, SAMPLERS[name].karras and bool(config.use_karras_sigmas))


def plan(
    scheduler: DDPMScheduler, name: str, num_inference_steps: int, karras: bool | None = None
) -> list[Pair]:
    """The (from, to) levels of a whole run, one pair a step, noisiest first.

    Args:
        scheduler: the checkpoint's; its config's ``timestep_spacing`` counts for every sampler.
        name: a key of SAMPLERS.
        num_inference_steps: how many pairs, at least 1.
        karras: levels of Karras et al. 2022; None as the checkpoint's config says.

    Raises ArgumentError for an unknown name, a number of steps that does not fit, or Karras levels
    with a method that has none; CheckpointError where the network cannot start from pure noise.
    """
    row = _row(name)
    if karras and not row.karras:
        able = ", ".join(key for key, other in SAMPLERS.items() if other.karras)
        raise ArgumentError(f"sampler {name!r} has no Karras levels; these have: {able}")
    if karras is None:
        karras = row.karras and bool(scheduler.config.use_karras_sigmas)
    steps = row.levels(scheduler, num_inference_steps, _spacing(scheduler, row), karras)
    if steps[0][0].alpha == 0 and scheduler.config.prediction_type == "epsilon":
        raise CheckpointError(
            f"scheduler_config.json: prediction_type 'epsilon' says nothing at zero SNR, where "
            f"{name!r} starts with this timestep_spacing; set timestep_spacing to 'leading', or "
            "prediction_type to 'v_prediction' if the model was trained so"
        )
    return steps


def bind(scheduler: DDPMScheduler, name: str, eta: float = 0.0) -> Step:
    """The step of sampler `name` with the checkpoint's settings (clipping, variance).

    η in [0, 1] scales the noise that "ddim" adds. Raises ArgumentError for an unknown name, η out
    of range, or η with another sampler.
    """
    row = _row(name)
    if not 0 <= eta <= 1:
        raise ArgumentError(f"eta is {eta}; it must be in [0, 1]: 0 adds no noise")
    if eta and not row.eta:
        raise ArgumentError(f"eta is {eta}, but sampler {name!r} has no eta; only 'ddim' has")
    return row.bind(scheduler, eta)


def first_noise_scale(scheduler: DDPMScheduler, name: str, steps: list[Pair]) -> float:
    """What to multiply N(0, I) with to start `steps` from noise, so as to draw diffusers' picture.

    1, or σ of the first level where diffusers leaves out α x₀ and its variance ("euler").
    """
    row = _row(name)
    scaled = row.scaled_noise and _spacing(scheduler, row) != "leading"
    return steps[0][0].sigma if scaled else 1.0


def schedule_type(karras: bool) -> str:
    """A1111's "Schedule type" for a picture's metadata."""
    return "Karras" if karras else "Automatic"


def _row(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise ArgumentError(f"sampler is {name!r}; expected one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def _spacing(scheduler: DDPMScheduler, row: Sampler) -> str:
    return scheduler.config.timestep_spacing or row.spacing
