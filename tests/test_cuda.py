"""On a GPU: what fast/test_cuda.py can only show by stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.fast import decode_in_strips, fp8
from ldm.fast.graphs import forget_recordings, held_by_recordings
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


@pytest.mark.parametrize(
    ("dtype", "allowed"), [("float32", 1e-3), ("bfloat16", 0.3), ("float16", 0.1)]
)
def test_recorded_steps_draw_the_plain_picture(folder: Path, dtype: str, allowed: float) -> None:
    pipe = pipeline(folder, dtype=dtype)
    assert pipe.optimized.graphs and pipe.optimized.by_default  # without a word
    drawn = [pipe(prompts, **SETTINGS).images for prompts in (PROMPTS, PROMPTS[:1], PROMPTS)]
    assert len(pipe.optimized.graphs.recordings) == 2
    assert pipe.optimized.graphs.held > 0
    pipe.optimized.graphs.record = refuse  # the same layers, computed plainly
    pipe.optimized.graphs.forget()
    with pytest.warns(UserWarning, match="without recording them"):
        want = pipe(PROMPTS, **SETTINGS).images
    assert torch.equal(drawn[0], want) and torch.equal(drawn[2], want)
    pipe.optimize(False)
    assert difference(pipe(PROMPTS, **SETTINGS).images, want) < allowed


def refuse(call: Any, inputs: Any) -> Any:
    raise torch.OutOfMemoryError("as if there were none")


def test_recorded_decodes_are_the_plain_ones(folder: Path) -> None:
    pipe = pipeline(folder)
    assert pipe.optimized.decoder
    x = torch.randn(3, 4, 8, 8, device="cuda")
    got = [pipe.decode(x) for _ in range(2)]
    assert len(pipe.optimized.decoder.recordings) == 1 and pipe.optimized.decoder.held > 0
    pipe.optimized.decoder.forget()
    pipe.optimized.decoder.record = refuse
    with pytest.warns(UserWarning, match="decodes of this size are computed without recording"):
        want = pipe.decode(x)
    assert all(torch.equal(one, want) for one in got)


def test_recorded_steps_see_a_lora(folder: Path) -> None:
    pipe = pipeline(folder)
    before = pipe(PROMPTS, **SETTINGS).images
    with torch.no_grad():  # as a LoRA changes weights: where they lie
        pipe.unet.mid_block.attentions[0].proj_in.weight.mul_(1.5)
        pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight.mul_(1.5)
        pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_k.weight.mul_(1.5)
    got = pipe(PROMPTS, **SETTINGS).images
    assert len(pipe.optimized.graphs.recordings) == 1
    assert difference(got, before) > 1e-3
    assert difference(got, pipe.optimize(False)(PROMPTS, **SETTINGS).images) < 1e-3


def test_recordings_give_their_memory_back(folder: Path) -> None:
    pipe = pipeline(folder)
    want = pipe(PROMPTS, **SETTINGS).images
    assert pipe.optimized.graphs.recordings and held_by_recordings(pipe.device) > 0
    assert forget_recordings(pipe.device)
    assert held_by_recordings(pipe.device) == 0
    assert torch.equal(pipe(PROMPTS, **SETTINGS).images, want)
    assert held_by_recordings(pipe.device) > 0


def test_streams_share_a_recording(folder: Path) -> None:
    pipe = pipeline(folder)
    want = pipe(PROMPTS, **SETTINGS).images
    for _ in range(2):
        with torch.cuda.stream(torch.cuda.Stream()):
            assert torch.equal(pipe(PROMPTS, **SETTINGS).images, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_in_strips(folder: Path, dtype: str) -> None:
    """Where memory is short: its group norms' statistics are PyTorch's own on CUDA."""
    vae = pipeline(folder, dtype=dtype).vae
    z = torch.randn(1, 4, 24, 16, device="cuda", dtype=next(vae.parameters()).dtype)
    want, got = (f(z).float() for f in (vae.decode, partial(decode_in_strips, vae)))
    assert difference(got, want) < (1e-4 if dtype == "float32" else 0.05) * want.std()


def test_compiled_blocks_draw_nearly_the_same(folder: Path) -> None:
    pipe = pipeline(folder).optimize(False)
    want = pipe(PROMPTS, **SETTINGS).images
    got = pipe.optimize(compile=True)(PROMPTS, **SETTINGS).images
    assert difference(got, want) < 1e-3


@pytest.mark.parametrize("offload", [True, "sequential"])
def test_offloaded_parts_draw_the_same_in_less_memory(folder: Path, offload: Any) -> None:
    pipe = pipeline(folder).optimize(False)

    def peak() -> tuple[torch.Tensor, int]:
        torch.cuda.reset_peak_memory_stats()
        picture = pipe(PROMPTS[:1], **SETTINGS).images
        return picture, torch.cuda.max_memory_allocated()

    peak()  # libraries take their workspaces once
    want, whole = peak()
    pipe.optimize(offload=offload)
    got, less = peak()
    assert torch.equal(got, want)
    assert less < whole
    deep = pipe.unet.mid_block.resnets[0].conv1.weight
    pipe.send_home()
    assert deep.device.type == "cpu" and deep.is_pinned()


def test_blocks_loaded_for_the_gpu_see_a_lora(folder: Path) -> None:
    pipe = pipeline(folder, offload="sequential")
    assert pipe.device.type == "cuda"
    before = pipe(PROMPTS, **SETTINGS).images
    whole = pipeline(folder).optimize(False)
    assert torch.equal(before, whole(PROMPTS, **SETTINGS).images)
    for one in (pipe, whole):
        one.send_home()
        with torch.no_grad():
            one.unet.mid_block.resnets[0].conv1.weight.mul_(1.5)
    got = pipe(PROMPTS, **SETTINGS).images
    assert difference(got, before) > 1e-3
    assert torch.equal(got, whole(PROMPTS, **SETTINGS).images)


def test_8_bit_floating_point_is_near_and_sees_a_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.get_device_capability() < fp8.CAPABILITY:
        pytest.skip("needs compute capability 8.9")
    monkeypatch.setattr(fp8, "LEAST", 16)
    pipe = pipeline(folder, dtype="bfloat16")
    want = pipe(PROMPTS, **SETTINGS).images
    got = pipe.optimize(fp8=True)(PROMPTS, **SETTINGS).images
    assert pipe.fp8 and len(pipe.optimized.graphs.recordings) == 1
    assert torch.equal(pipe(PROMPTS, **SETTINGS).images, got)
    assert 0 < difference(got, want) < 0.5
    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0]
    with torch.no_grad():
        block.attn1.to_v.weight.mul_(2)  # rounded anew where it lies, for the same recording
    assert difference(pipe(PROMPTS, **SETTINGS).images, got) > 1e-3
    assert len(pipe.optimized.graphs.recordings) == 1


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler"])
@pytest.mark.parametrize("optimized", [False, True])
def test_no_step_waits_for_the_gpu(folder: Path, sampler: str, optimized: bool) -> None:
    pipe = pipeline(folder)
    pipe.optimize(optimized)
    pipe(PROMPTS, sampler=sampler, **SETTINGS)
    try:
        for index, _ in enumerate(pipe.stream(PROMPTS, sampler=sampler, **SETTINGS)):
            # Between the first step and the last, behind which the picture is fetched.
            torch.cuda.set_sync_debug_mode("error" if index < 4 else "default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
