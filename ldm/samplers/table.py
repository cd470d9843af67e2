"""All samplers: their names, methods and levels of noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ldm.samplers.ddim import DDIM
from ldm.samplers.ddpm import DDPM
from ldm.samplers.deis import DEIS
from ldm.samplers.dpm2 import DPM2
from ldm.samplers.dpmpp import DPMpp2M, DPMpp2S
from ldm.samplers.dpmpp_sde import DPMpp2MSDE, DPMpp2SAncestral, DPMpp3MSDE, DPMppSDE
from ldm.samplers.heun import Heun
from ldm.samplers.lcm import LCM
from ldm.samplers.lms import LMS
from ldm.samplers.loop import NewMethod, Pair
from ldm.samplers.pndm import PNDM
from ldm.samplers.schedules import SCHEDULES
from ldm.samplers.spacing import (
    chain,
    deis_levels,
    dpmpp_levels,
    euler_levels,
    lcm_levels,
    singlestep_levels,
    strides,
    tcd_levels,
)
from ldm.samplers.tcd import TCD
from ldm.samplers.unipc import UniPC

if TYPE_CHECKING:
    from ldm.scheduler import DDPMScheduler, Level

Steps = Sequence[Pair]
FINE = 15  # in runs of fewer steps, diffusers' last one is of first order


@dataclass(frozen=True)
class Sampler:
    """One row of SAMPLERS."""

    label: str  # as A1111 writes it into a picture
    class_name: str | None  # diffusers' scheduler of the same method
    # (scheduler, η, the run's steps) → what makes the method's object
    bind: Callable[[DDPMScheduler, float, Steps], NewMethod]
    levels: Callable[[DDPMScheduler, int, str], list[Pair]]  # (…, n, spacing): schedule "normal"
    spacing: str  # if scheduler_config.json names none
    calls: int = 1  # of the network in a step
    eta: bool = False  # takes η
    scaled_noise: bool = False  # starts from σ ε, unless the spacing is "leading"
    # Whether diffusers' class obeys use_karras_sigmas and the like.
    obeys_schedule: bool = False
    # Whether diffusers' class lays them between the ends of its own levels, not of training's.
    within_own: bool = False
    # schedule → how diffusers rounds the network's timesteps.
    whole: Mapping[str, Callable[[float], float]] = field(default_factory=dict)
    schedules: tuple[str, ...] = tuple(SCHEDULES)  # those that make sense
    unfit: str = ""  # why the others make none
    # Config values that the method honours; from_config refuses others.
    honours: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def _averaged(scheduler: DDPMScheduler) -> DDPMScheduler:
    """Return the scheduler of what PNDM averages: raw outputs, but not μ̃, which depends on x."""
    mean = scheduler.config.prediction_type == "mean"
    return scheduler.predicting("epsilon") if mean else scheduler


def _left(steps: Steps) -> dict[Level, int]:
    """Count the steps of a run that are left, by the level at which they begin."""
    return {a: len(steps) - i for i, (a, _) in enumerate(steps)}


K_DIFFUSION: dict[str, Any] = {
    "levels": euler_levels,
    "spacing": "linspace",
    "scaled_noise": True,
    "within_own": True,
}
MULTISTEP: dict[str, Any] = {
    "levels": dpmpp_levels,
    "spacing": "linspace",
    "obeys_schedule": True,
    "whole": {"karras": round, "exponential": int, "beta": int},
}
SOLVER: dict[str, tuple[Any, ...]] = {
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "final_sigmas_type": ("zero",),
    "thresholding": (False,),
}
VARIANCES = (
    *("fixed_small", "fixed_large", "fixed_small_log", "fixed_large_log"),
    *("learned_range", "learned"),
)
SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        label="DDPM",
        class_name="DDPMScheduler",
        bind=lambda scheduler, eta, steps: partial(
            DDPM, clip=scheduler.clip, variance_type=scheduler.config.variance_type
        ),
        levels=chain,
        spacing="leading",
        honours={"variance_type": VARIANCES, "thresholding": (False,)},
    ),
    "ddim": Sampler(
        label="DDIM",
        class_name="DDIMScheduler",
        bind=lambda scheduler, eta, steps: partial(DDIM, eta=eta, clip=scheduler.clip),
        levels=strides,
        spacing="leading",
        eta=True,
        honours={"thresholding": (False,)},
    ),
    "pndm": Sampler(
        label="PLMS",
        class_name="PNDMScheduler",
        bind=lambda scheduler, eta, steps: partial(PNDM, scheduler=_averaged(scheduler)),
        levels=strides,
        spacing="leading",
        schedules=("normal", "sgm_uniform", "simple"),
        unfit="its weights are those of equal steps of time",
        honours={"skip_prk_steps": (True,)},
    ),
    "euler": Sampler(
        label="Euler",
        class_name="EulerDiscreteScheduler",
        bind=lambda scheduler, eta, steps: DDIM,
        **K_DIFFUSION,
        obeys_schedule=True,
        honours={"final_sigmas_type": ("zero",)},
    ),
    "euler_a": Sampler(
        label="Euler a",
        class_name="EulerAncestralDiscreteScheduler",
        bind=lambda scheduler, eta, steps: partial(DDIM, eta=1.0),
        **K_DIFFUSION,
    ),
    "heun": Sampler(
        label="Heun",
        class_name="HeunDiscreteScheduler",
        bind=lambda scheduler, eta, steps: Heun,
        **K_DIFFUSION,
        calls=2,
        obeys_schedule=True,
        honours={"clip_sample": (False,)},
    ),
    "dpm2": Sampler(
        label="DPM2",
        class_name="KDPM2DiscreteScheduler",
        bind=lambda scheduler, eta, steps: partial(DPM2, scheduler=scheduler),
        **K_DIFFUSION,
        calls=2,
        obeys_schedule=True,
        whole={"karras": round},
    ),
    "dpm2_a": Sampler(
        label="DPM2 a",
        class_name="KDPM2AncestralDiscreteScheduler",
        bind=lambda scheduler, eta, steps: partial(DPM2, scheduler=scheduler, ancestral=True),
        **K_DIFFUSION,
        calls=2,
        obeys_schedule=True,
        whole={"karras": round},
    ),
    "lms": Sampler(
        label="LMS",
        class_name="LMSDiscreteScheduler",
        bind=lambda scheduler, eta, steps: LMS,
        **K_DIFFUSION,
        obeys_schedule=True,
    ),
    "dpmpp_2m": Sampler(
        label="DPM++ 2M",
        class_name="DPMSolverMultistepScheduler",
        bind=lambda scheduler, eta, steps: DPMpp2M,
        **MULTISTEP,
        honours={"algorithm_type": ("dpmsolver++",), **SOLVER},
    ),
    "dpmpp_2m_sde": Sampler(
        label="DPM++ 2M SDE",
        class_name="DPMSolverMultistepScheduler",
        bind=lambda scheduler, eta, steps: DPMpp2MSDE,
        **MULTISTEP,
        honours={"algorithm_type": ("sde-dpmsolver++",), **SOLVER},
    ),
    "dpmpp_3m_sde": Sampler(
        label="DPM++ 3M SDE",
        class_name="DPMSolverMultistepScheduler",
        bind=lambda scheduler, eta, steps: DPMpp3MSDE,
        **MULTISTEP,
        honours={"algorithm_type": ("sde-dpmsolver++",), **SOLVER, "solver_order": (3,)},
    ),
    "dpmpp_2s": Sampler(
        label="DPM++ 2S",
        class_name="DPMSolverSinglestepScheduler",
        bind=lambda scheduler, eta, steps: partial(
            DPMpp2S, second=frozenset(a for a, _ in steps[1::2])
        ),
        **{**MULTISTEP, "levels": singlestep_levels},
        honours={"algorithm_type": ("dpmsolver++",), **SOLVER},
    ),
    "dpmpp_2s_a": Sampler(
        label="DPM++ 2S a",
        class_name=None,
        bind=lambda scheduler, eta, steps: DPMpp2SAncestral,
        **K_DIFFUSION,
        calls=2,
    ),
    "dpmpp_sde": Sampler(
        label="DPM++ SDE",
        class_name="DPMSolverSDEScheduler",
        bind=lambda scheduler, eta, steps: partial(DPMppSDE, scheduler=scheduler),
        **K_DIFFUSION,
        calls=2,
        obeys_schedule=True,
    ),
    "unipc": Sampler(
        label="UniPC",
        class_name="UniPCMultistepScheduler",
        bind=lambda scheduler, eta, steps: partial(
            UniPC, order=min(scheduler.config.solver_order, 3), left=_left(steps)
        ),
        **MULTISTEP,
        honours={
            "solver_order": (1, 2, 3),
            # diffusers takes the others, which are other classes', for "bh2"
            "solver_type": ("bh2", "midpoint", "heun", "logrho"),
            "lower_order_final": (True,),
            "final_sigmas_type": ("zero",),
            "thresholding": (False,),
        },
    ),
    "deis": Sampler(
        label="DEIS",
        class_name="DEISMultistepScheduler",
        bind=lambda scheduler, eta, steps: partial(DEIS, careful=0 < len(steps) < FINE),
        **{**MULTISTEP, "levels": deis_levels},
        honours={
            "solver_order": (2,),
            "lower_order_final": (True,),
            "thresholding": (False,),
        },
    ),
    "lcm": Sampler(
        label="LCM",
        class_name="LCMScheduler",
        bind=lambda scheduler, eta, steps: LCM,
        levels=lcm_levels,
        spacing="leading",
        schedules=tuple(
            name
            for name in SCHEDULES
            if name not in ("karras", "exponential", "beta", "ddim_uniform")
        ),
        unfit="at t = 0 or 1, where it ends, a consistency model returns its noisy input",
        honours={"thresholding": (False,)},
    ),
    "tcd": Sampler(
        label="TCD",
        class_name="TCDScheduler",
        bind=lambda scheduler, eta, steps: partial(TCD, scheduler=scheduler, eta=eta),
        levels=tcd_levels,
        spacing="leading",
        eta=True,
    ),
}
