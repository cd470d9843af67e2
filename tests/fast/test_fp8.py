"""Layers in 8-bit floating point: what the numbers stand for, by the CPU's own operator."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ldm.checkpoints.assets import asset_path
from ldm.cli.generate import main
from ldm.errors import ArgumentError
from ldm.fast import fp8, onednn, slow_down
from ldm.fast.fp8 import Fp8Attention, Fp8Linear, Weight, quantize, rounded
from ldm.fast.fused import FusedAttention, fuse_attention
from ldm.fast.graphs import Graphs
from ldm.fast.optimize import check_optimize
from ldm.images import read_settings
from ldm.layers import Attention, TransformerBlock
from ldm.pipeline import Pipeline
from tests.fast.test_cuda import rerun
from tests.fast.test_fast import draw, small_unet
from tests.helpers.networks import difference, randomize

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The layers of tests are narrow."""
    monkeypatch.setattr(fp8, "LEAST", 16)
    with torch.no_grad():
        yield


def restored(x: Tensor) -> Tensor:
    """What a rounded matrix stands for."""
    values = rounded(x)
    return values.q.float() * values.scales


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return draw(2, 4, 9, 7), torch.full((2,), 500.0), draw(2, 5, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 40)),
    spread=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_rounding(dtype: torch.dtype, shape: tuple[int, int], spread: float, seed: int) -> None:
    x = (spread * draw(*shape, seed=seed)).to(dtype)
    values = rounded(x)
    assert values.q.float().isfinite().all() and values.scales.shape == (shape[0], 1)
    assert (values.q.float().abs().amax(1) >= 447).all()  # no number is left unused
    # Three bits behind the point; below 2^-6 of a scale, steps of 2^-9.
    allowed = x.float().abs() * 2**-4 * 1.01 + values.scales * 2**-10 * 1.01
    assert ((restored(x) - x.float()).abs() <= allowed).all()
    assert torch.equal(rounded(x[:1]).q, values.q[:1])
    turned = rounded(x.T.contiguous().T)
    assert torch.equal(turned.q, values.q) and turned.q.is_contiguous()


def test_zeros_stay() -> None:
    assert torch.equal(restored(torch.zeros(2, 16)), torch.zeros(2, 16))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_is_the_plain_one_of_what_the_numbers_stand_for(
    dtype: torch.dtype, bias: bool
) -> None:
    layer = randomize(nn.Linear(48, 32, bias=bias)).to(dtype)
    x = draw(2, 5, 48).to(dtype)
    want = restored(x.flatten(0, 1)) @ restored(layer.weight).T
    if layer.bias is not None:
        want = want + layer.bias.float()
    fast = Fp8Linear.of(layer)
    got = fast(x)
    assert got.dtype == dtype
    near = 1e-5 if dtype == torch.float32 else 0.01
    assert difference(got.flatten(0, 1).float(), want) <= near * want.abs().max()
    assert torch.equal(torch.cat([fast(one[None]) for one in x]), got)


@pytest.mark.parametrize("fused", [False, True])
def test_attention_rounds_its_input_once(fused: bool) -> None:
    plain = nn.ModuleList([randomize(Attention(32, 2))])
    x = draw(2, 6, 32)
    exact = copy.deepcopy(plain[0])
    for layer in (exact.to_q, exact.to_k, exact.to_v):
        layer.weight.copy_(restored(layer.weight))
    q, k, v = exact.queries_keys_values(restored(x.flatten(0, 1)).view(x.shape), x)
    _, k, v = exact.queries_keys_values(*[restored(x.flatten(0, 1)).view(x.shape)] * 2)
    if fused:
        fuse_attention(plain)
    fast = Fp8Attention.of(plain[0])
    for got, want in zip(fast.queries_keys_values(x, x), (q, k, v), strict=True):
        assert difference(got, want) < 1e-5 * want.abs().max()
    handle = fast.to_q.register_forward_hook(lambda *_: None)  # somebody watches: the plain way
    assert torch.allclose(fast(x), plain[0](x), atol=1e-5)
    handle.remove()


def test_which_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = small_unet()
    quantize(unet)
    for block in (m for m in unet.modules() if isinstance(m, TransformerBlock)):
        assert type(block.attn1) is Fp8Attention and not isinstance(block.attn2, Fp8Attention)
        assert type(block.attn2.to_k) is type(block.attn2.to_v) is nn.Linear  # of the text
        eight = [block.attn2.to_q, block.ff.net[0].proj, block.ff.net[2], block.attn1.to_out[0]]
        assert all(type(layer) is Fp8Linear for layer in eight)
    assert not any("Fp8" in type(m).__name__ for m in unet.time_embedding.modules())
    assert not any("Fp8" in type(m).__name__ for r in unet.mid_block.resnets for m in r.modules())
    monkeypatch.setattr(fp8, "LEAST", 10**6)
    unet = small_unet()
    quantize(unet)
    assert not any("Fp8" in type(module).__name__ for module in unet.modules())
    monkeypatch.setattr(fp8, "LEAST", 16)
    assert [fp8.fits(nn.Linear(*s)) for s in ((16, 32), (24, 32), (32, 40))] == [True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_unet_and_back(dtype: torch.dtype) -> None:
    unet = small_unet(dtype)
    x, t, context = inputs()
    given = x.to(dtype), t, context.to(dtype)
    want, state = unet(*given), copy.deepcopy(unet.state_dict())
    quantize(unet)
    got = unet(*given)
    assert 1e-4 < (got.float() - want.float()).std() / want.float().std() < 0.1
    assert all(torch.equal(unet.state_dict()[name], tensor) for name, tensor in state.items())
    for again in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        assert torch.equal(again(*given), got)
    slow_down(unet)
    assert torch.equal(unet(*given), want)
    assert not any("in_8_bits" in vars(module) for module in unet.modules())


@pytest.mark.parametrize("of_attention", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_weights_that_change_are_rounded_anew(recorded: bool, of_attention: bool) -> None:
    """A recording reads the 8 bits where they lie: they are renewed there before a replay."""
    unet = small_unet()
    quantize(unet)
    fuse_attention(unet)
    block = next(m for m in unet.modules() if isinstance(m, TransformerBlock))
    assert type(block.attn2) is FusedAttention
    layer = block.attn1.to_v if of_attention else block.ff.net[2]
    graphs = Graphs(unet, rerun)
    x, t, context = inputs()

    def call() -> Tensor:
        return (graphs if recorded else unet)(x=x, t=t, context=context)

    def places() -> list[int]:
        kept = [*graphs.recordings.values()][-1]
        return [one.values.q.data_ptr() for _, one in kept.read if type(one) is Weight]

    before = [call() for _ in range(3)][-1]
    known = places() if recorded else []
    layer.weight.mul_(2)  # where it lies
    assert difference(call(), before) > 1e-3
    assert len(graphs.recordings) == recorded and (not recorded or places() == known != [])
    changed, layer.weight = layer.weight, nn.Parameter(layer.weight * 0.5, requires_grad=False)
    for _ in range(3):  # another tensor, as a LoRA makes it: recorded anew
        assert torch.equal(call(), before)
    layer.weight = changed  # and back, which replays the first one
    assert difference(call(), before) > 1e-3
    assert len(graphs.recordings) == 2 * recorded


@pytest.mark.slow
def test_the_built_in_model_draws_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, whose operator has the GPU's numbers, except how it rounds sums."""
    monkeypatch.undo()  # the layers that a GPU would take
    pipe = Pipeline.from_pretrained(asset_path("weights"), device="cpu", dtype="float32")
    prompts = ["a red car", "a green apple", "a blue cat", "two dogs", "an owl", "a pizza"]
    prompts += ["a rocket", "a house on a yellow background"]
    how = {"seed": 0, "num_inference_steps": 20, "output_type": "pt"}
    want = pipe(prompts, **how).images
    quantize(pipe.unet)
    error = (pipe(prompts, **how).images - want).pow(2).mean()
    assert -10 * error.log10() > 28  # dB; 30.3 measured


def test_the_operator_and_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = torch.device("cpu")
    assert fp8.supported(place)
    with pytest.raises(ArgumentError, match=r"capability 8\.9 or more .* but the device is cpu"):
        check_optimize(place, fp8=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A 3090")
    with pytest.raises(ArgumentError, match=r"8\.9 or more .* but A 3090 has 8\.6; leave it out"):
        check_optimize(GPU, fp8=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(fp8, "supported", lambda _: True)
    check_optimize(GPU, fp8=True)
    for name, value in {"compile": True, "offload": "sequential"}.items():
        with pytest.raises(ArgumentError, match=f"fp8 and {name} exclude each other"):
            check_optimize(GPU, fp8=True, **{name: value})  # type: ignore[arg-type]
    monkeypatch.undo()
    fp8.supported.cache_clear()

    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(onednn, "fp8_product", missing)
    with caplog.at_level(logging.DEBUG, "ldm"):
        assert not fp8.supported(place)
    assert "no such operator" in caplog.text
    fp8.supported.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(fp8, "supported", lambda _: False)
    with pytest.raises(ArgumentError, match="fp8 needs PyTorch's scaled products"):
        check_optimize(GPU, fp8=True)


def test_options_and_records(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU that passes for a GPU; its speed-up takes the gated layers from the 8 bits."""
    monkeypatch.chdir(tmp_path)
    command = ["a red car", "--steps", "3", "--seed", "3", "--model", str(folder)]
    command += ["--device", "cpu", "--quiet", "--force", "-o"]
    assert main([*command, "no.png", "--fp8"]) == 2 and not Path("no.png").exists()
    monkeypatch.setattr(fp8, "check_supported", lambda _: None)
    assert main([*command, "a.png", "--fp8"]) == 0 and main([*command, "b.png"]) == 0
    assert read_settings("a.png")["loading"]["fp8"] is True
    assert not read_settings("b.png")["loading"].get("fp8")
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()
    pipe = Pipeline.from_pretrained(folder, device="cpu", fp8=True)
    assert pipe.fp8 and "8-bit floating point" in f"{pipe}"
    assert any(isinstance(m, Fp8Linear) for m in pipe.unet.modules())
    assert not any(isinstance(m, Fp8Linear) for m in pipe.text_encoder.modules())
    assert pipe.optimized.ways["fp8"] and not pipe.optimize().fp8
    assert not any(isinstance(m, Fp8Linear) for m in pipe.unet.modules())
