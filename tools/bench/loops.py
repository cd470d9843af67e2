"""Whole runs: pictures of the built-in model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.assets import asset_path
from ldm.cli.fast import MODES
from ldm.pipeline import Pipeline
from tools.bench.models import ceiling, error
from tools.bench.processes import sd15
from tools.bench.race import Race
from tools.bench.sizes import at, shared_if_tiny

PROMPT, SEED = "a red car", 1


def steps() -> int:
    """Return the steps of a run."""
    return at(20, 3)


@shared_if_tiny
def both(dtype: str | None, engine: str | None) -> tuple[Pipeline, Any]:
    """Load the built-in model as ours, optimized, and as diffusers' pipeline."""
    from diffusers import StableDiffusionPipeline

    folder = asset_path("weights")
    ours = Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)
    ours.optimize(engine=engine)
    theirs = getattr(torch, dtype or "float32")
    peer = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=theirs)
    peer.set_progress_bar_config(disable=True)
    return ours, peer


def built_in(count: int, goal: float, dtype: str | None = None, engine: str | None = None) -> Race:
    """Prompt to pictures in memory, models loaded; dtype None: each library's default."""
    count = at(count, min(count, 2))
    ours, peer = both(dtype, engine)
    scale, mine = ours.defaults.guidance_scale, next(ours.unet.parameters()).dtype

    def call_ours() -> Tensor:
        prompts = [PROMPT] * count
        return ours(prompts, num_inference_steps=steps(), seed=SEED, output_type="pt").images

    def call_theirs() -> Tensor:
        generators = [torch.Generator().manual_seed(SEED + i) for i in range(count)]
        return peer(
            [PROMPT] * count,
            num_inference_steps=steps(),
            guidance_scale=scale,
            generator=generators,
            output_type="pt",
        ).images

    def check() -> tuple[float, float]:
        if mine == torch.float32:
            return (call_ours() - call_theirs()).abs().max().item(), 2e-3
        return error(call_ours(), call_theirs()), at(0.02, 0.05)  # some 40 dB

    number_format = dtype or f"{mine} against diffusers' default (float32)".removeprefix("torch.")
    what = f"built-in model, {steps()} steps, batch {count}, {number_format}"
    if engine is not None:  # its products are not PyTorch's, which ``ceiling`` counts
        return Race(f"{what}, by {engine}", call_ours, call_theirs, check, goal)
    return Race(what, call_ours, call_theirs, check, goal, more=partial(ceiling, call_ours))


def warm(count: int, goal: float) -> dict[str, Callable[[], Race]]:
    """Of so many pictures at once, in the default number format and in equal ones."""
    name = "warm" if count == 1 else f"warm-{count}"
    dtypes = {"": None, "-fp32": "float32", "-bf16": "bfloat16"}
    return {name + end: partial(built_in, count, goal, dtype) for end, dtype in dtypes.items()}


def mode(what: str, goal: float, **arguments: Any) -> Race:
    """Race a mode that draws another picture against ours, at Stable Diffusion's size.

    Of random weights, which take as long as others; ``tools.builtin_model.evaluate_modes`` tells
    the quality.
    """
    pipe = Pipeline.from_pretrained(sd15(), device="cpu", dtype="bfloat16").optimize()
    side = at(192, 64)

    def call(**more: Any) -> Tensor:
        settings = {"num_inference_steps": steps(), "seed": SEED, "output_type": "latent"}
        size = {"height": side, "width": side, "sampler": "dpmpp_2m_karras"}
        return pipe([PROMPT], **settings, **size, **more).images

    return Race(
        f"{what}: {steps()} steps at Karras levels, SD 1.5, {side} px, bf16",
        lambda: call(**arguments),
        call,
        lambda: (float(not call(**arguments).isfinite().all()), 0.0),
        goal,
        "ldm exact",
        turns=2,
    )


def deep_cache() -> Race:
    """Race DeepCache that computes one whole step of three."""
    return mode("DeepCache 3", 2.3, deep_cache=MODES["deep_cache"])


def interval() -> Race:
    """Race guidance at the middle levels only."""
    low, high = between = MODES["guidance_interval"]
    return mode(f"guidance at {low} < σ/α ≤ {high}", 1.3, guidance_interval=between)
