"""The samplers' loops alone: the network returns what it gets."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.config import SchedulerConfig
from ldm.errors import LDMError
from ldm.samplers import SAMPLERS, Denoised, bind, first_noise_scale, plan, sample
from ldm.scheduler import DDPMScheduler, Level
from tools.bench.models import error
from tools.bench.race import Race

STEPS = 50
SHAPE = (1, 4, 64, 64)
PREDICTIONS = ("epsilon", "sample")
SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
MORE: dict[str, dict[str, Any]] = {
    "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"},
    "dpmpp_3m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
}
NAMES = [name for name, row in SAMPLERS.items() if row.class_name]  # those that diffusers has


def sampler(name: str, prediction_type: str = "epsilon") -> Race:
    """Race a sampler, at Karras's levels where it takes them.

    Raises LDMError for a prediction_type that diffusers' sampler does not know.
    """
    karras = SAMPLERS[name].obeys_schedule
    settings = SD | MORE.get(name, {}) | {"use_karras_sigmas": karras}
    settings["prediction_type"] = prediction_type
    mine, peer = ours(name, settings), theirs(name, settings)

    def check() -> tuple[float, float]:
        try:
            return error(mine(), peer()), 1e-3
        except (NotImplementedError, ValueError) as problem:
            raise LDMError(f"diffusers' {SAMPLERS[name].class_name}: {problem}") from problem

    what = f"{name}{' at Karras levels' * karras}, {STEPS} steps, {prediction_type}"
    return Race(what, mine, peer, check, 8.0, turns=5, runs=5)


def ours(name: str, settings: dict[str, Any]) -> Callable[[], Tensor]:
    """Build a run of our loop."""
    values = settings | {"_class_name": SAMPLERS[name].class_name}
    scheduler = DDPMScheduler(SchedulerConfig.from_dict(values))
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def once() -> Tensor:
        levels = plan(scheduler, name, STEPS)
        method = bind(scheduler, name, steps=levels)
        first = start * first_noise_scale(scheduler, name, levels)
        generator = torch.Generator().manual_seed(1)

        def denoise(x: Tensor, level: Level, step: int) -> Denoised:
            return Denoised(scheduler.to_x0(x, x, level))

        def noise() -> Tensor:
            return torch.randn(SHAPE, generator=generator)

        return deque(sample(method, denoise, first, levels, noise), maxlen=1).pop()[0]

    return once


def theirs(name: str, settings: dict[str, Any]) -> Callable[[], Tensor]:
    """Build a run of diffusers' loop, as its pipelines write it."""
    import diffusers

    scheduler = getattr(diffusers, SAMPLERS[name].class_name).from_config(settings)
    draws = "generator" in inspect.signature(scheduler.step).parameters
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def once() -> Tensor:
        scheduler.set_timesteps(STEPS)
        x = start * scheduler.init_noise_sigma
        options = {"generator": torch.Generator().manual_seed(1)} if draws else {}
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            x = scheduler.step(scaled, t, x, **options, return_dict=False)[0]
        return x

    return once
