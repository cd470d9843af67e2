"""The fast layers compute what the plain ones do, keep their weights right, and come off again."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.checkpoints.assets import asset_path
from ldm.config import UNetConfig, VAEConfig
from ldm.fast import onednn, packed, slow_down, speed_up
from ldm.fast.attention import CachedAttention
from ldm.fast.cpu import PlanarGroupNorm as GroupNorm
from ldm.fast.norm import DirectGroupNorm
from ldm.fast.packed import PackedConv2d, PackedGEGLU, PackedLinear, PackedWeight
from ldm.layers import GEGLU, Attention
from ldm.pipeline import Pipeline
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
from tests.helpers.networks import difference, randomize

DTYPES = [torch.float32, torch.bfloat16]
NEAR = {torch.float32: 2e-5, torch.bfloat16: 0.04}  # of values of unit size
SIZES = st.integers(1, 40)


@pytest.fixture(autouse=True)
def every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of tests are small; pack them nevertheless."""
    monkeypatch.setattr(packed, "LARGE", 1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fast(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """What stands in the layer's place in a model that was sped up."""
    model = nn.Sequential(layer)
    speed_up(model)
    assert type(model[0]) is kind
    return model[0]


def plain(layer: nn.Module) -> nn.Module:
    model = nn.Sequential(layer)
    slow_down(model)
    return model[0]


def small_unet(dtype: torch.dtype = torch.float32, **changes: object) -> UNet:
    config = {
        "sample_size": 8,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    }
    return randomize(UNet(UNetConfig.from_dict(config | changes)), 3).to(dtype)


def small_vae(dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    config = {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    return randomize(AutoencoderKL(VAEConfig.from_dict(config)), 4).to(dtype)


def count_packed(module: nn.Module) -> int:
    weights = [parameter for m in module.modules() for parameter in m._parameters.values()]
    return sum(type(w) is PackedWeight and w.packed is not None for w in weights)


@pytest.mark.parametrize("dtype", DTYPES)
def test_this_machine_has_the_operators(dtype: torch.dtype) -> None:
    if not onednn.packs(dtype):
        pytest.skip("no packed weights here: all layers stay plain")


@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.booleans(), st.sampled_from(DTYPES))
def test_linear(a: int, b: int, rows: int, batch: int, bias: bool, dtype: torch.dtype) -> None:
    layer = nn.Linear(a, b, bias).to(dtype).requires_grad_(False)
    x = draw(batch, rows, a).to(dtype)
    want = layer(x)
    layer = fast(layer, PackedLinear)
    got = layer(x)
    assert got.dtype == dtype and got.shape == want.shape
    assert (got - want).abs().max() <= NEAR[dtype]
    assert torch.equal(layer(x[:1, 0]), layer(x[:1, :1])[:, 0])  # of another shape than packed for


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(SIZES, SIZES, SIZES, SIZES),
    st.sampled_from([(1, 0, 1), (3, 1, 1), (3, 1, 2), (3, 0, 2)]),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["zeros", "circular"]),
    st.sampled_from(DTYPES),
)
def test_convolution(
    sizes: tuple[int, int, int, int],
    kind: tuple[int, int, int],
    batch: int,
    last: bool,
    mode: str,
    dtype: torch.dtype,
) -> None:
    kernel, padding, stride = kind
    a, b, height, width = sizes
    # PyTorch itself is wrong in bfloat16 where one column comes out: see ExactDownsample.
    height, width = max(height, kernel), max(width, kernel + stride)
    layer = nn.Conv2d(a, b, kernel, stride, padding).to(dtype).requires_grad_(False)
    layer.padding_mode = mode
    x = draw(batch, a, height, width).to(dtype)
    want = layer(x)
    layer = fast(layer, PackedConv2d)
    got = layer(x.contiguous(memory_format=torch.channels_last) if last else x)
    assert got.dtype == dtype and got.shape == want.shape
    assert (got - want).abs().max() <= NEAR[dtype]
    again = layer(x[:, :, : height // 2 + kernel])
    layer = plain(layer)
    assert (again - layer(x[:, :, : height // 2 + kernel])).abs().max() <= NEAR[dtype]


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.integers(1, 3), st.sampled_from(DTYPES))
def test_geglu(dim: int, inner: int, batch: int, dtype: torch.dtype) -> None:
    layer = GEGLU(dim, inner).to(dtype).requires_grad_(False)
    weight = layer.proj.weight.clone()
    x = draw(batch, 7, dim).to(dtype)
    want = layer(x)
    layer = fast(layer, PackedGEGLU)
    got = layer(x)
    assert got.shape == want.shape
    # The larger a value, the larger is the last place that the two may round differently.
    assert ((got - want).abs() / want.abs().clamp(min=1)).max() <= NEAR[dtype]
    assert torch.equal(layer.proj.weight, weight)  # put together from its halves


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), SIZES, SIZES, st.booleans(), st.sampled_from(DTYPES))
def test_norm(
    width: int, groups: int, height: int, length: int, last: bool, dtype: torch.dtype
) -> None:
    layer = randomize(GroupNorm(groups, groups * width, 1e-5)).to(dtype)
    x = 3 * draw(2, groups * width, height, length).to(dtype) + 1
    want = layer(x)
    layer = fast(layer, DirectGroupNorm)
    got = layer(x.contiguous(memory_format=torch.channels_last) if last else x)
    assert (got - want).abs().max() <= NEAR[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "size"), [(1, (8, 8)), (2, (12, 7)), (3, (16, 40))])
def test_whole_networks(dtype: torch.dtype, batch: int, size: tuple[int, int]) -> None:
    unet, vae = small_unet(), small_vae()
    x, t = draw(batch, 4, *size), torch.linspace(3, 900, batch)
    context = draw(batch, 11, 32, seed=1)
    exact = unet(x, t, context), vae.decode(x), vae.posterior(vae.decode(x)).mean

    def error(got: tuple[Tensor, ...]) -> list[float]:
        return [difference(a.float(), b) / b.std().item() for a, b in zip(got, exact, strict=True)]

    unet, vae = unet.to(dtype), vae.to(dtype)
    told = x.to(dtype), t, context.to(dtype)
    pixels = exact[1].to(dtype)

    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return unet(*told), vae.decode(told[0]), vae.posterior(pixels).mean

    plain = run()
    for part in (unet, vae):
        speed_up(part)
    if onednn.packs(dtype):
        run()
        assert count_packed(unet) == sum(
            isinstance(m, PackedLinear | PackedConv2d) for m in unet.modules()
        )
    quick = run()
    for mine, theirs in zip(error(quick), error(plain), strict=True):
        assert mine <= (1e-4 if dtype == torch.float32 else 1.5 * theirs + 1e-3)
    for part in (unet, vae):
        slow_down(part)
    for mine, theirs in zip(run(), plain, strict=True):
        assert torch.equal(mine, theirs)


def test_off_is_what_was_before() -> None:
    unet = small_unet()
    kinds, keys = [type(m) for m in unet.modules()], list(unet.state_dict())
    names = [list(vars(m)) for m in unet.modules()]
    weights = {key: value.clone() for key, value in unet.state_dict().items()}
    speed_up(unet)
    speed_up(unet)  # which is the same as once
    with torch.no_grad():
        unet(draw(1, 4, 8, 8), torch.zeros(1), draw(1, 5, 32))
    assert [type(m) for m in unet.modules()] != kinds
    slow_down(unet)
    assert [type(m) for m in unet.modules()] == kinds
    assert [list(vars(m)) for m in unet.modules()] == names
    assert all(type(m._parameters) is dict for m in unet.modules())
    assert list(unet.state_dict()) == keys
    assert all(torch.equal(value, weights[key]) for key, value in unet.state_dict().items())


def a_layer(dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor, Tensor]:
    """A packed layer, what it reads, and its weight."""
    layer = nn.Linear(24, 48).to(dtype).requires_grad_(False)
    weight, x = layer.weight.clone(), draw(3, 24).to(dtype)
    layer = fast(layer, PackedLinear)
    layer(x)
    if not onednn.packs(dtype):
        pytest.skip("no packed weights here")
    assert count_packed(layer) == 1
    return layer, x, weight


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weight_comes_back_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    layer, x, weight = a_layer(dtype)
    assert torch.equal(layer.weight, weight)
    assert count_packed(layer) == 0  # in memory once
    for read in (
        lambda: layer.state_dict()["weight"],
        lambda: dict(layer.named_parameters())["weight"],
        lambda: next(layer.parameters()),
        lambda: copy.deepcopy(layer).weight,
        lambda: pickle.loads(pickle.dumps(layer)).weight,
        lambda: layer._parameters.get("weight"),
        lambda: layer._parameters.copy()["weight"],
    ):
        layer(x)
        assert count_packed(layer) == 1
        assert torch.equal(read(), weight)
    layer(x)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    assert torch.equal(load_file(tmp_path / "layer.safetensors")["weight"], weight)


def test_the_plain_weight_is_given_up() -> None:
    layer, x, _ = a_layer()
    assert layer._parameters["weight"]._before() is None
    held = layer.weight
    layer(x)
    assert layer.weight is held  # not a copy, since it is there anyway


def test_a_changed_weight_counts() -> None:
    layer, x, weight = a_layer()

    def check(want: Tensor) -> None:
        assert (layer(x) - (x @ want.T + layer.bias)).abs().max() < 1e-5

    layer.weight = nn.Parameter(2 * weight, requires_grad=False)
    check(2 * weight)
    layer.load_state_dict({"weight": 3 * weight, "bias": layer.bias})
    check(3 * weight)
    layer.load_state_dict({"weight": 4 * weight, "bias": layer.bias}, assign=True)
    check(4 * weight)
    with torch.no_grad():
        layer.weight.mul_(2)
    check(8 * weight)
    held = layer.weight
    layer(x)
    with torch.no_grad():
        held.mul_(0.5)  # behind the layer's back
    check(4 * weight)
    layer.weight.data = weight.clone()
    check(weight)
    layer.double()
    assert layer(x.double()).dtype == torch.float64
    layer.float()
    check(weight)
    del held


def test_gradients_autocast_and_inference_mode() -> None:
    layer, x, weight = a_layer()
    x.requires_grad_()
    layer(x).sum().backward()
    assert (x.grad - weight.sum(0)).abs().max() < 1e-5
    layer.weight.requires_grad_()
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.inference_mode():
        layer(x.detach())
        assert count_packed(layer) == 1
    layer.weight.mul_(2)  # no inference tensor
    with torch.inference_mode():
        other = fast(nn.Linear(24, 48).requires_grad_(False), PackedLinear)
        want = other(x.detach())
        held = other.weight
        held.mul_(2)
        assert (other(x.detach()) - 2 * want + other.bias).abs().max() < 1e-5
    with pytest.raises(RuntimeError, match="dtype"):
        layer(x.detach().bfloat16())


def test_without_the_operators(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    onednn.packs.cache_clear()
    monkeypatch.setattr(onednn, "packed_linear", missing)
    with caplog.at_level(logging.DEBUG, "ldm"):
        unet = small_unet()
        inputs = draw(1, 4, 8, 8), torch.zeros(1), draw(1, 5, 32)
        with torch.no_grad():
            want = unet(*inputs)
            speed_up(unet)
            assert (unet(*inputs) - want).abs().max() < 1e-5
    assert count_packed(unet) == 0
    assert [r.levelname for r in caplog.records] == ["DEBUG"]  # once, not for every layer
    assert "no such operator" in caplog.text
    onednn.packs.cache_clear()


def test_the_text_is_remembered() -> None:
    layer = randomize(Attention(16, 2, 24))
    x, context = draw(2, 9, 16), draw(2, 5, 24, seed=1)
    want = layer(x, context)
    layer = fast(layer, CachedAttention)
    calls: list[Tensor] = []
    layer.to_k.register_forward_hook(lambda *_: calls.append(_[2]))
    with torch.no_grad():
        for _ in range(3):
            assert (layer(x, context) - want).abs().max() < 1e-5
        assert len(calls) == 1
        other = context.clone()
        other[0] += 1
        assert (layer(x, other) - want)[0].abs().max() > 1e-3  # another text
        assert len(calls) == 2
        other.copy_(context)  # the same tensor, another text
        assert (layer(x, other) - want).abs().max() < 1e-5
        layer.to_v.weight = nn.Parameter(2 * layer.to_v.weight, requires_grad=False)
        assert (layer(x, other) - want).abs().max() > 1e-3  # other weights
        layer.to_v.weight.mul_(0.5)
        assert (layer(x, other) - want).abs().max() < 1e-5
    layer = plain(layer)
    assert "cached" not in vars(layer)


def test_pipeline(folder: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    settings = {"num_inference_steps": 3, "seed": 5, "output_type": "pt"}
    want = pipe("a red car", **settings).images
    assert pipe.optimize() is pipe
    got = pipe("a red car", **settings).images
    assert difference(got, want) <= 1e-4
    assert count_packed(pipe.unet) > 20 and count_packed(pipe.vae) > 20
    pipe.save_pretrained(tmp_path / "again")
    again = Pipeline.from_pretrained(tmp_path / "again", device="cpu")
    assert torch.equal(again("a red car", **settings).images, want)
    assert difference(pipe("a red car", tiling=True, **settings).images, want) > 1e-3
    pipe.optimize(False)
    assert torch.equal(pipe("a red car", **settings).images, want)


def test_loras_on_and_off(folder: Path, tmp_path: Path) -> None:
    plain = Pipeline.from_pretrained(folder, device="cpu")
    pipe = Pipeline.from_pretrained(folder, device="cpu").optimize()
    name = "down_blocks.1.attentions.0.transformer_blocks.0"
    tensors = {}
    for layer, rows, columns in (("attn2.to_k", 64, 32), ("ff.net.0.proj", 512, 64)):
        tensors[f"unet.{name}.{layer}.lora_A.weight"] = 3 * draw(4, columns)
        tensors[f"unet.{name}.{layer}.lora_B.weight"] = 3 * draw(rows, 4, seed=1)
    save_file(tensors, tmp_path / "style.safetensors")
    settings = {"num_inference_steps": 2, "seed": 5, "output_type": "pt"}
    pictures = []
    for each in (plain, pipe):
        before = each("a red car", **settings).images
        each.load_lora_weights(tmp_path / "style.safetensors")
        on = each("a red car", **settings).images
        each.set_adapters("style", 0.5)
        half = each("a red car", **settings).images
        each.unload_lora_weights()
        pictures.append((before, on, half, each("a red car", **settings).images))
    assert difference(pictures[0][0], pictures[0][1]) > 1e-3
    for want, got in zip(*pictures, strict=True):
        assert difference(got, want) <= 1e-4
    assert torch.equal(pictures[1][0], pictures[1][3])


def test_built_in_model() -> None:
    pipe = Pipeline.from_pretrained(asset_path("weights"), device="cpu")
    settings = {"num_inference_steps": 3, "seed": 1, "output_type": "pt"}
    want = pipe("a red car", **settings).images
    assert difference(pipe.optimize()("a red car", **settings).images, want) <= 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pixelwise_convolution_is_packed_for_each_size(dtype: torch.dtype) -> None:
    """Other sizes before make no difference: oneDNN would put the weight in order at every call."""
    layer = nn.Conv2d(64, 96, 1).to(dtype).requires_grad_(False)
    fresh, used = (fast(copy.deepcopy(layer), PackedConv2d) for _ in range(2))
    pictures = [draw(2, 64, side, side).to(dtype) for side in (4, 16)]
    for x in pictures:
        used(x)
        if used.weight.packed is not None:  # where the processor has such layers
            assert used.weight.packed_for == x.shape[2:]
    assert torch.equal(used(pictures[1]), fresh(pictures[1]))
    assert torch.equal(used.weight, layer.weight)


def test_what_a_weight_is_leaves_it_packed() -> None:
    pipe = Pipeline.from_pretrained(device="cpu", dtype="float32").optimize()
    pipe("a", seed=1, num_inference_steps=1, output_type="latent")
    packed = [p for p in pipe.unet.parameters() if type(p) is PackedWeight and p.packed is not None]
    assert len(packed) > 20
    assert pipe.dtype == torch.float32 and pipe.device.type == "cpu" and repr(pipe)
    assert sum(p.numel() * p.element_size() for p in packed) > 1 << 20
    assert all(p.packed is not None for p in packed)
    assert not any(p.isnan().any() for p in packed)  # values are another matter
    assert all(p.packed is None for p in packed)
