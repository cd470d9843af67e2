"""The estimate is what tensors take: counted by PyTorch's profiler, at two small sizes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from ldm.checkpoints.assets import asset_path
from ldm.errors import ArgumentError, NotEnoughMemoryError
from ldm.fast import onednn, speed_up
from ldm.fast.packed import PackedWeight
from ldm.fast.sequential import held
from ldm.loading.needed import check_memory, networks_of
from ldm.loading.outline import read_outline
from ldm.memory import networks, refusal
from ldm.memory.estimate import Drawing, Networks, estimate
from ldm.memory.layers import Kernels
from ldm.pipeline import Pipeline
from ldm.request import Request
from tools.bench.networks import peak


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(device="cpu", dtype="float32")


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("optimize", [False, True])
def test_unet(pipe: Pipeline, rows: int, optimize: bool) -> None:
    side, unet, config = 48, pipe.unet, pipe.unet.config
    x = torch.randn(rows, config.in_channels, side, side)
    context = torch.randn(rows, 77, config.cross_attention_dim or 0)
    pipe.optimize(optimize)
    with torch.no_grad():
        unet(x[:, :, :16, :16], torch.ones(rows), context)  # packs
        taken = peak(lambda: unet(x, torch.ones(rows), context)) * 1e6
    pipe.optimize(False)
    counted = networks.unet_call(config, side, side, Kernels(4, optimize)) * rows * 4
    assert 0.85 <= counted / taken <= 1.2


@pytest.mark.parametrize("what", ["decode", "encode"])
@pytest.mark.parametrize("optimize", [False, True])
def test_vae(pipe: Pipeline, what: str, optimize: bool) -> None:
    """At a size that no strips are for."""
    side, config, kernels = 32, pipe.vae.config, Kernels(4, optimize)
    pipe.optimize(optimize)
    with torch.no_grad():
        if what == "decode":
            z = torch.randn(1, config.latent_channels, side, side)
            pipe.vae.decode(z[..., :8, :8])
            taken = peak(lambda: pipe.vae.decode(z)) * 1e6
            counted = networks.decode_whole(config, side**2, kernels) * 4
        else:
            pixels = torch.randn(1, 3, side * 8, side * 8)
            pipe.vae.encode(pixels[..., :64, :64])
            taken = peak(lambda: pipe.vae.encode(pixels)) * 1e6
            counted = networks.encode(config, side**2 * 64, kernels) * 4
    pipe.optimize(False)
    low, high = (0.95, 1.05) if what == "encode" else (0.85, 1.25)
    assert low <= counted / taken <= high


def test_strips_take_less(pipe: Pipeline) -> None:
    """Measured against the strips of ``ldm.fast.strips``."""
    config, side = pipe.vae.config, 96
    z = torch.randn(1, config.latent_channels, side, side)
    vae = pipe.vae
    speed_up(vae)
    with torch.no_grad():
        vae.decode(z[..., :8, :8])
        taken = peak(lambda: vae.decode(z)) * 1e6
    pipe.optimize(False)
    counted = networks.decode(config, side**2, Kernels(4, True), thin=False, fast_strips=True)
    assert 0.85 <= counted / taken <= 1.35
    assert counted < networks.decode_whole(config, side**2, Kernels(4, True)) * 4


def test_packed_weights_stay_packed(pipe: Pipeline) -> None:
    pipe.optimize()
    pipe("a red car", num_inference_steps=1, seed=1)

    def count() -> int:
        with onednn.as_plain_tensors():
            weights = [p for part in (pipe.unet, pipe.vae) for p in part.parameters()]
            return sum(type(p) is PackedWeight and p.packed is not None for p in weights)

    before = count()
    needed = pipe.memory_needed()
    assert count() == before > 20
    pipe.optimize(False)
    assert needed.weights == pipe.memory_needed().weights


def test_a_pipeline_says_what_it_needs(pipe: Pipeline) -> None:
    small, large = pipe.memory_needed(), pipe.memory_needed(1024, 1024, 4)
    assert small.weights == large.weights == small.loaded
    assert small.weights == sum(networks_of(pipe).weights.values())
    assert small.peak < large.peak and large.missing == large.peak - large.loaded
    assert re.fullmatch(
        r"[\d.]+ GB at the peak \(weights .+, denoising .+\); .+ available", f"{large}"
    )
    assert pipe.memory_needed(image=True).encoding > 0 == small.encoding
    unguided = pipe.memory_needed(1024, 1024, guidance_scale=1.0)
    assert unguided.denoising < pipe.memory_needed(1024, 1024).denoising
    with pytest.raises(ArgumentError, match="height is 100"):
        pipe.memory_needed(100)


def test_what_cannot_fit_is_refused(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is drawn, with what would fit, which then is not refused."""
    monkeypatch.setattr("ldm.loading.needed.available_memory", lambda device: 300_000_000)
    monkeypatch.setattr(refusal, "be_thrifty", lambda: None)
    with pytest.raises(NotEnoughMemoryError, match="LDM_MEMORY=ignore") as found:
        pipe.stream("a red car", height=2048, width=1024, num_images_per_prompt=2)
    assert "2 pictures of 1024x2048 would need" in str(found.value)
    side = re.search(r"(\d+)x(\d+) \(", str(found.value).partition("what fits")[2])
    assert side is not None
    width, height = map(int, side.groups())
    assert abs(height - 2 * width) <= 8
    pipe.stream("a red car", height=height, width=width)
    with pytest.raises(NotEnoughMemoryError):
        pipe.stream("a red car", height=height + 128, width=width + 64)
    with pytest.raises(NotEnoughMemoryError, match=r"what fits: (\d) at once \(--batch-size \1\)"):
        pipe.stream("a red car", height=896, width=896, num_images_per_prompt=32)
    monkeypatch.setenv(refusal.OVERRIDE, "ignore")
    pipe.stream("a red car", height=2048, width=1024)


def test_near_the_limit_the_allocator_keeps_nothing(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(refusal, "be_thrifty", lambda: calls.append("thrifty"))
    request, needed = Request("x"), pipe.memory_needed().missing
    for available, times in ((20 * needed, 0), (int(1.2 * needed), 1)):
        monkeypatch.setattr("ldm.loading.needed.available_memory", lambda _, n=available: n)
        check_memory(pipe, request, (128, 128), [], True)
        assert len(calls) == times


def test_ways_out(pipe: Pipeline) -> None:
    model, drawing = networks_of(pipe), Drawing(512, 512)
    on_gpu = replace(model, device="cuda", weights={"unet": 10**9, "vae": 10**9}, loaded=False)
    free = estimate(replace(on_gpu, offload=True), drawing).missing
    assert any("--offload" in way for way in refusal.ways_out(on_gpu, drawing, free))
    assert not any("--sequential" in way for way in refusal.ways_out(on_gpu, drawing, free))
    on_gpu = replace(on_gpu, by_blocks=10**8)  # where one part is too much, blocks may fit
    free = estimate(replace(on_gpu, offload="sequential"), drawing).missing
    for known in (False, True):
        ways = [*refusal.ways_out(replace(on_gpu, offload=known), drawing, free)]
        assert any('--sequential-offload, optimize(offload="sequential")' in way for way in ways)
        assert not any("one part" in way for way in ways)
    there = replace(on_gpu, offload="sequential", loaded=False)
    assert not any("offload" in way for way in refusal.ways_out(there, drawing, free - 1))
    free = estimate(refusal.in_half(on_gpu), drawing).missing
    assert any("bfloat16" in way for way in refusal.ways_out(on_gpu, drawing, free))
    assert list(refusal.ways_out(on_gpu, drawing, 1000)) == []


def test_blocks_are_counted_alike_on_disk_and_loaded(pipe: Pipeline) -> None:
    parts = [pipe.unet, pipe.vae, *(model.encoder for model in pipe.text_models)]
    there = read_outline(asset_path("weights"), torch.float32, "cuda")
    assert there.by_blocks == held(parts) < sum(there.weights.values())
    needed = estimate(replace(there, offload="sequential"), Drawing(512, 512))
    assert needed.weights == there.by_blocks and needed.loaded == 0
    assert read_outline(asset_path("weights"), torch.float32, "cpu").by_blocks == 0


def test_every_part_counts(pipe: Pipeline) -> None:
    """A ControlNet, a reference, guidance and 8 bits each take more."""
    model: Networks = networks_of(pipe)
    drawing = Drawing(512, 512, 2)
    least = estimate(model, drawing)
    for change in ({"controlnets": 1}, {"reference": True}, {"rows": 3}, {"count": 3}):
        assert estimate(model, replace(drawing, **change)).denoising > least.denoising
    one, two = (estimate(model, replace(drawing, controlnets=n)).denoising for n in (1, 2))
    assert two >= one
    assert estimate(replace(model, int8=True), drawing).weights > least.weights
    assert estimate(replace(model, fp8=True), drawing).weights > least.weights
    assert estimate(model, replace(drawing, decode=False)).decoding < least.decoding


def test_offloaded_parts_are_on_the_gpu_one_at_a_time(pipe: Pipeline) -> None:
    """So that the U-Net's weights do not count beside what decoding takes."""
    model, drawing = replace(networks_of(pipe), device="cuda", loaded=False), Drawing(1024, 1024)
    sizes = {"unet": 5_000, "vae": 300, "text_encoder": 200, "text_encoder_2": 1_400}
    weights = {name: size * 10**6 for name, size in sizes.items()}
    needed = estimate(replace(model, weights=weights, offload=True), drawing)
    decoding = weights["vae"] + needed.decoding
    assert needed.peak == max(weights["unet"] + needed.denoising, decoding)
    assert needed.peak < needed.weights + needed.activations
    steered = estimate(replace(model, weights=weights | {"edges": 10**10}, offload=True), drawing)
    assert steered.peak == 10**10 + needed.denoising


def test_a_gpu_decodes_whole_pictures_unless_memory_is_short(pipe: Pipeline) -> None:
    model = replace(networks_of(pipe), device="cuda", optimized=True)
    whole, thin = (estimate(model, Drawing(1024, 1024), n).decoding for n in (10**11, 10**8))
    assert thin < whole / 2
    assert estimate(replace(model, device="cpu"), Drawing(1024, 1024), 10**11).decoding < whole
