"""On a GPU: what fast/test_cuda.py can only show by stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.pipeline import Pipeline
from tests.helpers.networks import difference

pytestmark = pytest.mark.cuda
PROMPTS = ["a red car", "two cats"]
SETTINGS: dict[str, Any] = {"num_inference_steps": 6, "seed": 5, "output_type": "pt"}


@pytest.fixture(autouse=True)
def full_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions would else round to 10 bits, and choose their sums anew."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    yield


def pipeline(folder: Path, device: str = "cuda", **how: Any) -> Pipeline:
    return Pipeline.from_pretrained(folder, device=device, **{"dtype": "float32", **how})


def test_the_device_and_the_format_by_default(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    assert pipe.device.type == "cuda"
    assert pipe.unet.conv_in.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m_karras", "euler", "plms"])
def test_a_seed_draws_the_cpus_picture(folder: Path, sampler: str) -> None:
    want = pipeline(folder, "cpu")(PROMPTS, sampler=sampler, **SETTINGS).images
    got = pipeline(folder)(PROMPTS, sampler=sampler, **SETTINGS).images
    assert difference(got.cpu(), want) < 1e-3


@pytest.mark.parity
def test_a_seed_draws_diffusers_picture(folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.StableDiffusionPipeline.from_pretrained(folder).to("cuda")
    peer.scheduler = diffusers.DDIMScheduler.from_config(peer.scheduler.config)
    generators = [torch.Generator().manual_seed(5 + i) for i in range(2)]
    settings = {"num_inference_steps": 6, "output_type": "pt", "guidance_scale": 5.0}
    want = peer(PROMPTS, generator=generators, **settings).images
    got = pipeline(folder)(PROMPTS, sampler="ddim", guidance_scale=5.0, **SETTINGS).images
    assert difference(got.cpu(), want.cpu()) < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_recorded_steps_draw_the_plain_picture(folder: Path, dtype: str) -> None:
    plain, fast = (pipeline(folder, dtype=dtype) for _ in range(2))
    plain.unet.to(memory_format=torch.channels_last)
    plain.vae.to(memory_format=torch.channels_last)
    fast.optimize()
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS):
        want = plain(prompts, **SETTINGS).images
        assert torch.equal(fast(prompts, **SETTINGS).images, want)
    assert len(fast.optimized.graphs.recordings) == 2
    fast.optimize(False)
    assert torch.equal(fast(PROMPTS, **SETTINGS).images, want)


def test_recorded_steps_see_a_lora(folder: Path) -> None:
    pipe = pipeline(folder).optimize()
    before = pipe(PROMPTS, **SETTINGS).images
    with torch.no_grad():  # as a LoRA changes weights: where they lie
        pipe.unet.mid_block.attentions[0].proj_in.weight.mul_(1.5)
    got = pipe(PROMPTS, **SETTINGS).images
    assert difference(got, before) > 1e-3
    assert torch.equal(got, pipe.optimize(False)(PROMPTS, **SETTINGS).images)


def test_compiled_blocks_draw_nearly_the_same(folder: Path) -> None:
    pipe = pipeline(folder)
    want = pipe(PROMPTS, **SETTINGS).images
    got = pipe.optimize(compile=True)(PROMPTS, **SETTINGS).images
    assert difference(got, want) < 1e-3


def test_offloaded_parts_draw_the_same_in_less_memory(folder: Path) -> None:
    pipe = pipeline(folder)

    def peak() -> tuple[torch.Tensor, int]:
        torch.cuda.reset_peak_memory_stats()
        picture = pipe(PROMPTS[:1], **SETTINGS).images
        return picture, torch.cuda.max_memory_allocated()

    peak()  # libraries take their workspaces once
    want, whole = peak()
    pipe.optimize(offload=True)
    got, less = peak()
    assert torch.equal(got, want)
    assert less < whole
    assert pipe.unet.conv_in.weight.device.type == "cpu"


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler"])
@pytest.mark.parametrize("optimized", [False, True])
def test_no_step_waits_for_the_gpu(folder: Path, sampler: str, optimized: bool) -> None:
    pipe = pipeline(folder)
    if optimized:
        pipe.optimize()
    pipe(PROMPTS, sampler=sampler, **SETTINGS)
    try:
        for index, _ in enumerate(pipe.stream(PROMPTS, sampler=sampler, **SETTINGS)):
            # Between the first step and the last, behind which the picture is fetched.
            torch.cuda.set_sync_debug_mode("error" if index < 4 else "default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
