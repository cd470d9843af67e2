"""Weights in 8 bits on the GPU: the CPU stands in for it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.checkpoints.assets import asset_path
from ldm.cli.options import read
from ldm.errors import ArgumentError
from ldm.fast import int8_weights
from ldm.fast.int8_weights import Int8Offload, Int8Weight, is_rounded, size_in_8_bits
from ldm.fast.optimize import Optimized, check_optimize, keep_away, undo
from ldm.loading.outline import read_outline
from ldm.memory.estimate import Drawing, Networks, estimate
from ldm.memory.refusal import ways_out
from ldm.pipeline import Pipeline
from tests.fast.test_cuda import SETTINGS
from tests.helpers.loras import save_lora_of_ones
from tests.helpers.networks import difference

PLACE = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of tests are small: theirs count nevertheless."""
    monkeypatch.setattr(int8_weights, "LEAST", 256)


def networks(pipe: Pipeline) -> list[nn.Module]:
    return [pipe.unet, *(model.encoder for model in pipe.text_models)]


def in_8_bits(pipe: Pipeline) -> Int8Offload:
    rounded = networks(pipe)
    away = keep_away([*rounded, pipe.vae], [], PLACE, True, rounded)
    assert isinstance(away, Int8Offload)
    pipe.optimized = Optimized(offload=away, on=True, int8_weights=True)
    return away


def round_all(pipe: Pipeline) -> None:
    """Round the weights by the formula, and let plain layers compute with them."""
    for part in networks(pipe):
        for layer in part.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.numel() >= 256:
                rows = layer.weight.data.flatten(1)
                steps = rows.abs().max(1, keepdim=True).values / 127
                layer.weight.data = (steps * (rows / steps).round()).view_as(layer.weight)


def test_the_picture_is_that_of_the_rounded_weights(small: None, folder: Path) -> None:
    pipe, plain = (Pipeline.from_pretrained(folder, device="cpu") for _ in range(2))
    exact = plain("a red car", **SETTINGS).images
    round_all(plain)
    want = plain("a red car", **SETTINGS).images
    state = copy.deepcopy(pipe.unet.state_dict())
    in_8_bits(pipe)
    got = pipe("a red car", **SETTINGS).images
    assert difference(got, want) <= 1e-5
    assert difference(got, exact) > 1e-4
    assert torch.equal(copy.deepcopy(pipe)("a red car", **SETTINGS).images, got)
    assert torch.equal(pickle.loads(pickle.dumps(pipe))("a red car", **SETTINGS).images, got)
    pipe.send_home()
    assert all(torch.equal(value, state[name]) for name, value in pipe.unet.state_dict().items())
    undo(pipe.optimized, [*networks(pipe), pipe.vae], PLACE)
    pipe.optimized = Optimized()
    assert not any(isinstance(layer, Int8Weight) for layer in pipe.unet.modules())
    assert torch.equal(pipe("a red car", **SETTINGS).images, exact)


def test_one_part_has_its_rows_at_a_time(small: None, folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    away = in_8_bits(pipe)
    most = 0
    bring = away.bring

    def watched(part: nn.Module) -> None:
        nonlocal most
        bring(part)
        holders = {one for one, layers in away.layers.items() for x in layers if x.rows is not None}
        assert holders <= {part}
        most = max(most, len(holders))
        ids = {id(tensor) for tensor, _ in away.home}
        assert not any(id(layer.weight) in ids for layer in away.layers[part])

    away.bring = watched  # type: ignore[method-assign]
    for hook in away.hooks:
        hook.remove()
    for part in away.parts:
        away.watch(part)
    pipe("a red car", **SETTINGS)
    assert most == 1
    pipe.send_home()
    assert not any(layer.rows for layers in away.layers.values() for layer in layers)


def test_a_small_change_by_a_lora_is_not_lost(small: None, folder: Path, tmp_path: Path) -> None:
    """It is put on the plain weights, and rounded with them."""
    pipe, plain = (Pipeline.from_pretrained(folder, device="cpu") for _ in range(2))
    lora = save_lora_of_ones(plain.unet, tmp_path)
    plain.load_lora_weights(lora, scale=0.01)
    round_all(plain)
    want = plain("a red car", **SETTINGS).images
    in_8_bits(pipe)
    before = pipe("a red car", **SETTINGS).images
    pipe.load_lora_weights(lora, scale=0.01)
    assert difference(pipe("a red car", **SETTINGS).images, want) <= 1e-5
    assert difference(want, before) > 1e-5
    pipe.unload_lora_weights()
    assert torch.equal(pipe("a red car", **SETTINGS).images, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layers(small: None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers: list[tuple[nn.Module, Tensor]] = [
        (nn.Linear(24, 40, bias=False), torch.randn(3, 5, 24)),
        (nn.Conv2d(9, 7, 3, stride=2, padding=1), torch.randn(2, 9, 7, 5)),
        (nn.Conv2d(8, 12, 3, groups=2), torch.randn(1, 8, 5, 5)),
    ]
    for layer, x in layers:
        part = nn.Sequential(layer.to(dtype))
        plain = part(x.to(dtype))
        away = Int8Offload([part], PLACE, [part])
        assert isinstance(part[0], Int8Weight)
        got = part(x.to(dtype))
        assert got.dtype == dtype and 0 < (got - plain).abs().max() < 0.03 * plain.abs().max()
        q, scales = part[0].rows or (x, x)
        assert q.dtype == torch.int8 and q.abs().amax() == 127
        assert torch.equal((q * scales).to(dtype), part[0].weight_for(x.to(dtype)))
        away.end(PLACE)
        assert torch.equal(part(x.to(dtype)), plain)


def test_a_row_of_zeros_and_small_layers(small: None) -> None:
    part = nn.Sequential(nn.Linear(16, 16), nn.Linear(4, 4), nn.LayerNorm(256))
    nn.init.zeros_(part[0].weight[3])
    Int8Offload([part], PLACE, [part])
    assert isinstance(part[0], Int8Weight) and type(part[1]) is nn.Linear
    x = torch.ones(1, 16)
    assert torch.isfinite(F.linear(x, part[0].weight_for(x))).all()


def test_gradients_of_the_input(small: None) -> None:
    """Guidance by a classifier wants them; weights are constants."""
    part = nn.Sequential(nn.Linear(16, 32))
    Int8Offload([part], PLACE, [part])
    x = torch.ones(1, 16, requires_grad=True)
    part(x).sum().backward()
    q, scales = part[0].rows
    assert torch.allclose(x.grad, (q * scales).sum(0)[None])


def test_bytes_are_counted_alike_on_disk_and_loaded(small: None) -> None:
    pipe = Pipeline.from_pretrained(device="cpu", dtype="float32")
    parts = {name: part for name, part in pipe.parts.items() if isinstance(part, nn.Module)}
    there = read_outline(asset_path("weights"), torch.float32, "cuda")
    assert there.in_8_bits == int8_weights.sizes_in_8_bits(parts)
    assert there.in_8_bits.keys() == {"unet", "text_encoder"}
    drawing = Drawing(512, 512)
    plain = estimate(replace(there, offload=True), drawing)
    rounded = estimate(replace(there, offload=True, int8_weights=True), drawing)
    assert rounded.apart["denoising"] < 0.35 * plain.apart["denoising"]
    assert rounded.denoising == plain.denoising
    counted = size_in_8_bits(pipe.unet)
    away = in_8_bits(pipe)
    away.bring(pipe.unet)
    rows = [layer.rows for layer in away.layers[pipe.unet]]
    held = sum(one.nbytes for pair in rows if pair for one in pair)
    held += sum(tensor.nbytes for tensor, _ in away.home)
    assert held == counted - max(layer.weight.nbytes for layer in away.layers[pipe.unet])
    assert size_in_8_bits(pipe.unet) == counted


def test_where_one_plain_part_is_too_much_8_bits_are_proposed() -> None:
    there = read_outline(asset_path("weights"), torch.float32, "cuda")
    large = {"weights": {"unet": 10**10}, "in_8_bits": {"unet": 3 * 10**9}, "by_blocks": 10**9}
    model, drawing = replace(there, **large), Drawing(512, 512)

    def advice(model: Networks, away: Networks) -> str:
        return " ".join(ways_out(model, drawing, estimate(away, drawing).missing))

    rounded = replace(model, offload=True, int8_weights=True)
    assert "--int8-weights, optimize(int8_weights=True)" in advice(model, rounded)
    assert "--offload" in advice(model, replace(model, offload=True))
    assert "--sequential-offload" in advice(rounded, replace(model, offload="sequential"))


def test_options_and_errors(folder: Path) -> None:
    assert read(["x", "--int8-weights"]).int8_weights and not read(["x"]).int8_weights
    gpu = torch.device("cuda")
    given: dict[str, Any] = {"compile": True, "fp8": True, "engine": "openvino"}
    for name, value in given.items():
        if name != "fp8":
            with pytest.raises(ArgumentError, match=f"int8_weights and {name} exclude each other"):
                check_optimize(gpu, int8_weights=True, **{name: value})
    with pytest.raises(ArgumentError, match="int8_weights and sequential exclude each other"):
        check_optimize(gpu, int8_weights=True, offload="sequential")
    check_optimize(gpu, int8_weights=True, offload=True)
    with pytest.raises(ArgumentError, match="weights on a GPU, but the device is the CPU"):
        Pipeline.from_pretrained(folder, device="cpu", int8_weights=True)
    assert Optimized(int8_weights=True).ways["int8_weights"]
    assert is_rounded(nn.Linear(512, 512)) and not is_rounded(nn.Embedding(512, 512))


@pytest.mark.slow
def test_the_built_in_model_draws_nearly_the_same() -> None:
    pipe = Pipeline.from_pretrained(asset_path("weights"), device="cpu", dtype="float32")
    prompts = ["a red car", "a green apple", "a blue cat", "two dogs", "an owl", "a pizza"]
    prompts += ["a rocket", "a house on a yellow background"]
    how = {"seed": 0, "num_inference_steps": 20, "output_type": "pt"}
    want = pipe(prompts, **how).images

    def closeness() -> float:
        return float(-10 * (pipe(prompts, **how).images - want).pow(2).mean().log10())

    in_8_bits(pipe)
    ours = closeness()
    assert ours > 36  # dB; 38.1 measured
    undo(pipe.optimized, [*networks(pipe), pipe.vae], PLACE)
    pipe.optimized = Optimized()
    for part in networks(pipe):  # as diffusers' layerwise casting stores the same layers
        for layer in part.modules():
            if is_rounded(layer):
                layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn).float()
    assert closeness() < ours - 3  # 33.1 measured
