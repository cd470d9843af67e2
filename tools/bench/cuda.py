"""What `Pipeline.optimize` does on CUDA, at Stable Diffusion 1.5's size: `--device cuda`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm.cli.guidance_options import FAST
from ldm.pipeline import Pipeline
from tools.bench.models import allowed_error, error, unet_inputs
from tools.bench.networks import SMALL
from tools.bench.processes import sd15
from tools.bench.race import Race

DTYPE = torch.bfloat16
PROMPT, SEED, STEPS, SCALE = "a red car", 1, 20, 7.5
CALLS = 20  # of a network in a turn: one takes some milliseconds
DECODED = 64  # latents of 512 pixels


def ours(**how: bool) -> Pipeline:
    """Load the pipeline that `optimize` has made faster; `how` are its arguments."""
    return Pipeline.from_pretrained(sd15(), device="cuda", dtype=DTYPE).optimize(**how)


def peer(dtype: torch.dtype = DTYPE) -> Any:
    """diffusers' pipeline in channels_last memory, as its documentation advises."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        sd15(), torch_dtype=dtype, safety_checker=None
    ).to("cuda")
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    return pipe


def timed(call: Callable[[], object], times: int = CALLS) -> Callable[[], None]:
    """`call` so many times, to the end of what it has the GPU do."""

    def run() -> None:
        for _ in range(times):
            call()
        torch.cuda.synchronize()

    return run


def peak(call: Callable[[], object]) -> float:
    """MB that tensors take on the GPU at most, weights included."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e6


def step(compiled: bool) -> Race:
    """Race a guided step of one picture of 512 pixels; `compiled`: both by `torch.compile`."""
    exact = peer(torch.float32).unet.cpu()
    want = exact(*unet_inputs(exact, SMALL, torch.float32)).sample
    del exact
    pipe, theirs = ours(compile=compiled), peer().unet
    if compiled:
        theirs.compile_repeated_blocks(fullgraph=True)

    def on_gpu(size: int) -> list[Tensor]:
        x, t, context = (y.to("cuda") for y in unet_inputs(theirs, size, DTYPE))
        return [x.contiguous(memory_format=torch.channels_last), t, context]

    def call_ours(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return pipe.optimized.graphs(x, t, context=context)

    def call_theirs(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return theirs(x, t, context).sample

    def check() -> tuple[float, float]:
        given = on_gpu(SMALL)
        allowed = allowed_error(error(call_theirs(*given).cpu(), want), DTYPE)
        return error(call_ours(*given).cpu(), want), allowed

    inputs = on_gpu(64)
    what = f"SD 1.5 step, 64x64, bf16, {CALLS} times" + ", both compiled" * compiled
    return Race(
        what,
        timed(partial(call_ours, *inputs)),
        timed(partial(call_theirs, *inputs)),
        check,
        1.1 if compiled else 2.0,
        turns=5,
    )


def vae() -> Race:
    """Race the decoding of a picture of 512 pixels."""
    pipe, theirs = ours(), peer().vae
    z = noise().to("cuda", DTYPE)
    scale = pipe.vae.config.scaling_factor

    def call_ours() -> Tensor:
        return pipe.vae.decode(z)

    def call_theirs() -> Tensor:
        return theirs.decode(z / scale).sample

    def check() -> tuple[float, float]:
        return error(call_ours(), call_theirs()), 0.05

    return Race(
        f"VAE decode, 512 px, bf16, {CALLS} times",
        timed(call_ours), timed(call_theirs), check, 1.05,
        turns=5,
    )  # fmt: skip


def noise() -> Tensor:
    """For both: diffusers' noise of a seed is another in bfloat16."""
    return torch.randn((1, 4, DECODED, DECODED), generator=torch.Generator().manual_seed(SEED))


def draw_ours(pipe: Pipeline, **more: Any) -> Tensor:
    """Draw a picture of 512 pixels with ours."""
    settings = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "latents": noise()}
    return pipe([PROMPT], output_type="pt", sampler="ddim", **settings, **more).images


def draw_theirs(pipe: Any) -> Tensor:
    """Draw a picture of 512 pixels with diffusers."""
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    settings = {"num_inference_steps": STEPS, "guidance_scale": SCALE}
    return pipe([PROMPT], output_type="pt", latents=noise().to(DTYPE), **settings).images


def run(memory: bool, offload: bool = False) -> Race:
    """Race a prompt to pixels, models loaded: seconds, or memory of the GPU."""
    pipe, theirs = ours(offload=offload), peer()
    if offload:
        theirs.to("cpu")
        theirs.enable_model_cpu_offload()

    def check() -> tuple[float, float]:
        mine, others = draw_ours(pipe), draw_theirs(theirs)
        return error(mine.cpu(), others.cpu()), 0.2  # of random weights, which spread rounding

    actions: list[Callable[[], object]] = [
        partial(draw_ours, pipe),
        partial(draw_theirs, theirs),
    ]
    actions = [partial(peak, a) if memory else timed(a, 1) for a in actions]
    what = f"prompt to pixels, SD 1.5, 512 px, {STEPS} steps, bf16"
    what += ", parts offloaded" * offload + ": peak memory, MB" * memory
    return Race(what, *actions, check, 1.0 if memory else 1.5, measured=memory, turns=3)


def mode(what: str, goal: float, **arguments: Any) -> Race:
    """Race a mode that draws another picture against our own exact one."""
    pipe = ours()

    def check() -> tuple[float, float]:
        return float(not draw_ours(pipe, **arguments).isfinite().all()), 0.0

    actions = [timed(partial(draw_ours, pipe, **more), 1) for more in (arguments, {})]
    return Race(f"{what}, {STEPS} steps, 512 px", *actions, check, goal, "ldm exact")


SECTIONS: dict[str, Callable[[], Race]] = {
    "cuda-step": partial(step, False),
    "cuda-step-compiled": partial(step, True),
    "cuda-vae": vae,
    "cuda-run": partial(run, False),
    "cuda-memory": partial(run, True),
    "cuda-offload": partial(run, False, offload=True),
    "cuda-offload-memory": partial(run, True, offload=True),
    "cuda-deep-cache": partial(mode, "DeepCache 3", 2.3, deep_cache=FAST["deep_cache"]),
    "cuda-interval": partial(
        mode, "guidance interval", 1.3, guidance_interval=FAST["guidance_interval"]
    ),
}
