"""Whole runs: the sampler's loop alone, and pictures of the built-in model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.assets import asset_path
from ldm.config import SchedulerConfig
from ldm.pipeline import Pipeline
from ldm.samplers import bind, plan, sample
from ldm.scheduler import DDPMScheduler, Level
from tools.bench.race import Race

PROMPT, SEED, STEPS = "a red car", 1, 20
SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "prediction_type": "sample",
}


def sampler() -> Race:
    """50 steps of DPM++ 2M Karras, whose network returns what it gets."""
    from diffusers import DPMSolverMultistepScheduler

    ours = DDPMScheduler(SchedulerConfig.from_dict({**SD, "clip_sample": False}))
    peer = DPMSolverMultistepScheduler.from_config({**SD, "use_karras_sigmas": True})
    first = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(1))

    def network(x: Tensor, level: Level) -> Tensor:
        return x

    def call_ours() -> Tensor:
        steps = plan(ours, "dpmpp_2m", 50, "karras")
        run = sample(bind(ours, "dpmpp_2m", 0.0, steps), network, first, steps, None)
        return deque(run, maxlen=1).pop()[0]

    def call_theirs() -> Tensor:
        peer.set_timesteps(50)
        x = first
        for t in peer.timesteps:
            x = peer.step(x, t, x).prev_sample
        return x

    def check() -> tuple[float, float]:
        return (call_ours() - call_theirs()).abs().max().item(), 1e-4

    return Race("sampler loop, 50 steps", call_ours, call_theirs, check, 8.0, turns=25)


def built_in(count: int, goal: float) -> Race:
    """Prompt to pictures in memory, models loaded."""
    from diffusers import StableDiffusionPipeline

    folder = asset_path("weights")
    ours = Pipeline.from_pretrained(folder, device="cpu").optimize()
    peer = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    peer.set_progress_bar_config(disable=True)
    scale = ours.defaults.guidance_scale

    def call_ours() -> Tensor:
        prompts = [PROMPT] * count
        return ours(prompts, num_inference_steps=STEPS, seed=SEED, output_type="pt").images

    def call_theirs() -> Tensor:
        generators = [torch.Generator().manual_seed(SEED + i) for i in range(count)]
        return peer(
            [PROMPT] * count,
            num_inference_steps=STEPS,
            guidance_scale=scale,
            generator=generators,
            output_type="pt",
        ).images

    def check() -> tuple[float, float]:
        return (call_ours() - call_theirs()).abs().max().item(), 2e-3

    return Race(
        f"built-in model, {STEPS} steps, batch {count}", call_ours, call_theirs, check, goal
    )


def warm() -> Race:
    """One picture."""
    return built_in(1, 2.0)


def warm_8() -> Race:
    """Eight at once."""
    return built_in(8, 1.5)


def mode(what: str, goal: float, **arguments: Any) -> Race:
    """A mode that draws another picture, against our own exact one."""
    pipe = Pipeline.from_pretrained(asset_path("weights"), device="cpu").optimize()

    def call(**more: Any) -> Tensor:
        settings = {"num_inference_steps": STEPS, "seed": SEED, "output_type": "pt"}
        return pipe([PROMPT], **settings, **more).images

    def psnr() -> dict[str, str]:
        error = (call(**arguments) - call()).pow(2).mean()
        return {"PSNR": f"{-10 * error.log10().item():.1f} dB"}

    return Race(
        what,
        with_arguments(call, arguments),
        call,
        lambda: (0.0, 0.0),
        goal,
        "ldm exact",
        more=psnr,
    )


def with_arguments(call: Callable[..., Tensor], arguments: dict[str, Any]) -> Callable[[], Tensor]:
    """``call`` with its arguments."""
    return lambda: call(**arguments)


def deep_cache() -> Race:
    """DeepCache, a whole step of three."""
    return mode("DeepCache 3, built-in model", 2.3, deep_cache=3)


def interval() -> Race:
    """Guidance at the middle levels only."""
    return mode(
        "guidance at 0.28 < σ/α ≤ 5.42, built-in model", 1.3, guidance_interval=(0.28, 5.42)
    )
