"""Layers in 8 bits: what their integers stand for, exactly; how near that is; on and off again."""

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.checkpoints.assets import asset_path
from ldm.cli.generate import main
from ldm.errors import ArgumentError
from ldm.fast import int8, slow_down, speed_up
from ldm.fast.int8 import AFTER_SILU, SYMMETRIC, Int8AfterSiLU, Int8Conv2d, Int8GEGLU
from ldm.fast.packed import PackedConv2d, PackedGEGLU
from ldm.images import read_settings
from ldm.images.generation_info import read_generation_info
from ldm.layers import GEGLU
from ldm.pipeline import Pipeline
from tests.fast.test_fast import draw, fast, small_unet
from tests.helpers.networks import difference, randomize

DTYPES = [torch.float32, torch.bfloat16]
SETTINGS = {"num_inference_steps": 4, "seed": 5, "output_type": "pt"}


@pytest.fixture(autouse=True)
def without_gradients() -> None:
    with torch.no_grad():
        yield


def restored(x: int8.Rounded) -> Tensor:
    """What rounded activations stand for."""
    shape = (-1, *[1] * (x.q.ndim - 1))
    return torch.tensor(x.scales).view(shape) * (x.q.float() - x.zero)


def restored_rows(weight: Tensor) -> Tensor:
    rows, scales = int8.rounded_rows(weight)
    return rows.float() * scales.view(-1, *[1] * (weight.ndim - 1))


def error(got: Tensor, exact: Tensor) -> float:
    return ((got.float() - exact).pow(2).mean().sqrt() / exact.std()).item()


def test_this_machine_has_the_operators() -> None:
    assert int8.supported()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 4),
    spread=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
    zero=st.sampled_from([AFTER_SILU, SYMMETRIC]),
)
def test_rounding(
    dtype: torch.dtype, shape: tuple[int, ...], spread: float, seed: int, zero: int
) -> None:
    x = spread * draw(*shape, seed=seed).to(dtype)
    x = F.silu(x) if zero == AFTER_SILU else x
    got = int8.rounded(x, zero)
    scales = torch.tensor(got.scales).view(-1, 1, 1, 1)
    # Half a step; and what bfloat16 loses between 64 and 128 steps.
    near = 0.501 if dtype == torch.float32 else 1.0
    assert ((restored(got) - x.float()).abs() <= near * scales).all()
    largest = x.float().abs().amax((1, 2, 3))
    least = 0.2785 / AFTER_SILU if zero == AFTER_SILU else 0.0
    for mine, peak in zip(got.scales, largest.tolist(), strict=True):
        assert mine <= 1.005 * max(peak / (254 - zero), least)  # no wider than needed
    alone = [int8.rounded(one[None], zero) for one in x]
    assert torch.equal(torch.cat([one.q for one in alone]), got.q)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bias=st.booleans(),
    padding_mode=st.sampled_from(["zeros", "circular"]),
    kind=st.sampled_from([Int8Conv2d, Int8AfterSiLU]),
)
def test_convolution(
    dtype: torch.dtype,
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    bias: bool,
    padding_mode: str,
    kind: type[Int8Conv2d],
) -> None:
    """It is the plain convolution of what the integers stand for."""
    layer = nn.Conv2d(*channels, 3, padding=1, bias=bias, padding_mode=padding_mode)
    layer = randomize(layer).to(dtype)
    x = draw(batch, channels[0], *size)
    x = (F.silu(x) if kind is Int8AfterSiLU else x).to(dtype)
    meant = restored(int8.rounded(x, kind.zero))
    plain = copy.deepcopy(layer).float()
    plain.weight.copy_(restored_rows(layer.weight))
    want = plain(meant)
    layer = kind.of(fast(layer, PackedConv2d))
    got = layer(x)
    assert got.dtype == dtype
    scale = want.abs().max().clamp(min=1.0)
    assert ((got.float() - want).abs().max() / scale) <= (1e-5 if dtype == torch.float32 else 0.02)
    alone = torch.cat([layer(one[None]) for one in x])
    assert torch.equal(alone, got)  # integers add up to the same in any order


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 20),
    width=st.integers(1, 40),
    inner=st.integers(1, 40),
)
def test_geglu(dtype: torch.dtype, batch: int, tokens: int, width: int, inner: int) -> None:
    layer = randomize(GEGLU(width, inner)).to(dtype)
    x = draw(batch, tokens, width).to(dtype)
    plain = copy.deepcopy(layer).float()
    plain.proj.weight.copy_(restored_rows(layer.proj.weight))
    want = plain(restored(int8.rounded(x, SYMMETRIC)))
    layer = Int8GEGLU.of(fast(layer, PackedGEGLU))
    got = layer(x)
    assert got.dtype == dtype
    scale = want.abs().max().clamp(min=1.0)
    assert ((got.float() - want).abs().max() / scale) <= (1e-5 if dtype == torch.float32 else 0.03)
    assert torch.equal(torch.cat([layer(one[None]) for one in x]), got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_unet_in_8_bits_and_back(dtype: torch.dtype) -> None:
    unet = small_unet(dtype)
    inputs = draw(2, 4, 9, 7).to(dtype), torch.full((2,), 500.0), draw(2, 5, 32).to(dtype)
    want, state = unet(*inputs), copy.deepcopy(unet.state_dict())
    speed_up(unet)
    int8.quantize(unet)
    counts = {kind: 0 for kind in (Int8AfterSiLU, Int8Conv2d, Int8GEGLU)}
    for module in unet.modules():
        if type(module) in counts:
            counts[type(module)] += 1
    resnets = sum(type(module).__name__ == "ResnetBlock" for module in unet.modules())
    geglus = sum(isinstance(module, PackedGEGLU) for module in unet.modules())
    assert counts == {Int8AfterSiLU: 2 * resnets, Int8Conv2d: 1, Int8GEGLU: geglus}
    got = unet(*inputs)
    assert 1e-4 < error(got, want.float()) < 0.06
    assert all(torch.equal(unet.state_dict()[name], tensor) for name, tensor in state.items())
    for again in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        assert torch.equal(again(*inputs), got)
    slow_down(unet)
    assert torch.equal(unet(*inputs), want)
    assert not any("cached" in vars(module) for module in unet.modules())


def test_weights_that_change_are_rounded_anew() -> None:
    unet = small_unet()
    speed_up(unet)
    int8.quantize(unet)
    inputs = draw(1, 4, 8, 8), torch.zeros(1), draw(1, 5, 32)
    before = unet(*inputs)
    for layer in (unet.mid_block.resnets[0].conv1, find(unet, Int8GEGLU).proj):
        layer.weight.mul_(2)
        assert difference(unet(*inputs), before) > 1e-3
        layer.weight = nn.Parameter(layer.weight * 0.5, requires_grad=False)
        assert torch.equal(unet(*inputs), before)


def find(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    return next(module for module in model.modules() if isinstance(module, kind))


def test_pipeline(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    want = pipe("a red car", **SETTINGS).images
    assert not pipe.int8
    pipe.optimize(int8=True)
    assert pipe.int8 and find(pipe.unet, Int8Conv2d)
    assert not any(isinstance(module, Int8Conv2d) for module in pipe.vae.modules())
    got = pipe("a red car", **SETTINGS).images
    assert difference(got, want) > 1e-4
    pair = pipe(["a blue cat", "a red car"], **SETTINGS | {"seed": 4}).images
    assert difference(pair[1:], got) <= 1e-4  # attention rounds otherwise in a batch
    again = Pipeline.from_pretrained(folder, device="cpu", int8=True)
    assert torch.equal(again("a red car", **SETTINGS).images, got)
    pipe("a red car", tiling=True, **SETTINGS)
    pipe.optimize()
    assert not pipe.int8 and not any(isinstance(m, Int8Conv2d) for m in pipe.unet.modules())
    pipe.optimize(False)
    assert torch.equal(pipe("a red car", **SETTINGS).images, want)


@pytest.mark.slow
def test_the_built_in_model_draws_nearly_the_same() -> None:
    pipe = Pipeline.from_pretrained(asset_path("weights"), device="cpu", dtype="float32")
    prompts = [
        "a red car", "a green apple", "a blue cat", "two dogs", "an owl", "a pizza", "a rocket",
        "a house on a yellow background", "three stars", "a tree next to a house", "a pink flower",
        "a purple fish", "a cup of coffee", "a black bird", "a guitar, 3d",
        "a small key on the left",
    ]  # fmt: skip
    want = pipe(prompts, seed=0, output_type="pt").images
    got = pipe.optimize(int8=True)(prompts, seed=0, output_type="pt").images
    errors = (got - want).pow(2).flatten(1).mean(1)
    assert (-10 * errors.log10()).mean() > 40  # dB; 42 measured


def test_what_does_not_go_together(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    with pytest.raises(ArgumentError, match="int8 and compile exclude each other"):
        pipe.optimize(int8=True, compile=True)
    assert not any(isinstance(module, PackedConv2d) for module in pipe.unet.modules())


def test_without_the_operators(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    int8.supported.cache_clear()
    monkeypatch.setattr(int8, "pack_conv", missing)
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    with (
        caplog.at_level(logging.DEBUG, "ldm"),
        pytest.raises(ArgumentError, match="int8 needs PyTorch's oneDNN operators"),
    ):
        pipe.optimize(int8=True)
    assert "no such operator" in caplog.text
    assert not int8.gains(torch.float32)
    int8.supported.cache_clear()


@pytest.mark.parametrize(
    ("amx", "vnni", "want"), [(True, True, (True, False)), (False, True, (True, True))]
)
def test_where_it_gains(
    amx: bool, vnni: bool, want: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    assert tuple(map(int8.gains, DTYPES)) == want
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not int8.gains(torch.float32)


def drawn(folder: Path, *options: str) -> Image.Image:
    """With the small model, in the present folder."""
    command = [
        "a red car",
        "--steps",
        "6",
        "--seed",
        "3",
        "--model",
        str(folder),
        "--device",
        "cpu",
    ]
    assert main([*command, *options, "-o", "a.png", "--force", "--quiet"]) == 0
    with Image.open("a.png") as picture:
        return picture.copy()


def test_fast_on_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(int8, "gains", lambda dtype: True)
    exact = drawn(folder)
    each = ("--guidance-interval", "0.28,5.42", "--deep-cache", "3", "--int8")
    fast = drawn(folder, *each)
    assert fast.tobytes() != exact.tobytes()
    assert read_settings("a.png")["loading"]["int8"] is True
    assert drawn(folder, "--fast").tobytes() == fast.tobytes()
    info = read_generation_info("a.png")
    assert info.arguments["deep_cache"] == 3
    assert info.arguments["guidance_interval"] == (0.28, 5.42)
    pipe = Pipeline.from_pretrained(folder, device="cpu", **info.loading)
    assert pipe.optimize(int8=pipe.int8)(**info.arguments).images[0].tobytes() == fast.tobytes()
    assert main(["--from", "a.png", "--model", str(folder), "-o", "b.png", "--quiet"]) == 0
    with Image.open("b.png") as again:
        assert again.tobytes() == fast.tobytes()
    plain = ("--fast", "--no-int8", "--deep-cache", "1", "--guidance-interval", "0,inf")
    assert drawn(folder, *plain).tobytes() == exact.tobytes()
    assert drawn(folder, "--deep-cache", "1", "--fast").tobytes() == fast.tobytes()
    monkeypatch.setattr(int8, "gains", lambda dtype: False)
    drawn(folder, "--fast")
    assert read_settings("a.png")["loading"]["int8"] is False
