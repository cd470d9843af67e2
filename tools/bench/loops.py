"""Whole runs: pictures of the built-in model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.assets import asset_path
from ldm.cli.steer import FAST
from ldm.pipeline import Pipeline
from tools.bench.race import Race

PROMPT, SEED, STEPS = "a red car", 1, 20


def built_in(count: int, goal: float) -> Race:
    """Prompt to pictures in memory, models loaded."""
    from diffusers import StableDiffusionPipeline

    folder = asset_path("weights")
    ours = Pipeline.from_pretrained(folder, device="cpu", dtype="float32").optimize()
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
        f"built-in model, {STEPS} steps, batch {count}, float32",
        call_ours,
        call_theirs,
        check,
        goal,
    )


def warm() -> Race:
    """One picture."""
    return built_in(1, 2.0)


def warm_8() -> Race:
    """Eight at once."""
    return built_in(8, 1.5)


def mode(what: str, goal: float, **arguments: Any) -> Race:
    """A mode that draws another picture, against our own exact one."""
    pipe = Pipeline.from_pretrained(asset_path("weights"), device="cpu", dtype="float32")
    pipe.optimize()

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
    return mode("DeepCache 3, built-in model", 2.3, deep_cache=FAST["deep_cache"])


def interval() -> Race:
    """Guidance at the middle levels only."""
    low, high = between = FAST["guidance_interval"]
    what = f"guidance at {low} < σ/α ≤ {high}, built-in model"
    return mode(what, 1.3, guidance_interval=between)
