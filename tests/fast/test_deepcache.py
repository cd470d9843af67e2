"""DeepCache against its definition, and against diffusers' layers."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm.config import UNetConfig
from ldm.errors import ArgumentError
from ldm.fast.deepcache import DeepCache
from ldm.pipeline import Pipeline
from ldm.unet import UNet
from tests.helpers.networks import difference, randomize
from tests.helpers.pictures import draw

LAYERS = 2


def small_unet() -> UNet:
    config = {
        "block_out_channels": [16, 32],
        "layers_per_block": LAYERS,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
    }
    return randomize(UNet(UNetConfig.from_dict(config)), 3)


def inputs(seed: int, batch: int = 2, size: tuple[int, int] = (8, 6)) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((batch, 4, *size), generator=generator)
    return x, torch.full((batch,), 900.0 - 9 * seed), text(batch)


@functools.cache
def text(batch: int) -> Tensor:
    """The same tensor at each step, as in a run."""
    return torch.randn((batch, 5, 24), generator=torch.Generator().manual_seed(1))


def short_step(
    unet: UNet, whole: tuple[Tensor, ...], now: tuple[Tensor, ...], branch: int
) -> Tensor:
    """By the definition: the features that enter the layer in a whole step, then that layer on."""
    up, down = unet.up_blocks[-1], unet.down_blocks[0]
    seen: list[Tensor] = []
    entry = len(up.resnets) - 1 - branch
    handle = up.resnets[entry].register_forward_hook(lambda m, i, o: seen.append(i[0]))
    unet(*whole)
    handle.remove()
    deep = seen[0][:, : seen[0].shape[1] - 16]
    x, t, context = now
    temb = unet.embed(t, None, None, None, None, dtype=x.dtype)
    skips = [unet.conv_in(x)]
    for i in range(branch):
        skips.append(down.attentions[i](down.resnets[i](skips[-1], temb), context))
    h = deep
    for i in range(entry, len(up.resnets)):
        h = up.resnets[i](torch.cat([h, skips.pop()], dim=1), temb)
        h = up.attentions[i](h, context)
    return unet.conv_out(nn.functional.silu(unet.conv_norm_out(h)))


@pytest.mark.parametrize("branch", range(LAYERS))
def test_steps_are_whole_or_short(branch: int) -> None:
    unet = small_unet()
    keys = list(unet.state_dict())
    cached = DeepCache(unet, 3, branch)
    for step in range(7):
        now, whole = inputs(step), inputs(step // 3 * 3)
        got = cached(*now)
        want = unet(*now) if step % 3 == 0 else short_step(unet, whole, now, branch)
        assert difference(got, want) <= 1e-6
        if step % 3:
            assert difference(got, unet(*now)) > 1e-3
        cached.next_step()
    assert list(unet.state_dict()) == keys
    assert not any(m._forward_pre_hooks for m in unet.modules())


def test_each_batch_has_its_own() -> None:
    unet = small_unet()
    cached = DeepCache(unet, 2)
    for batch, size in ((1, (8, 6)), (2, (8, 6)), (2, (5, 7))):
        assert torch.equal(cached(*inputs(0, batch, size)), unet(*inputs(0, batch, size)))


def test_more_branches_are_nearer() -> None:
    unet = small_unet()
    errors = []
    for branch in range(LAYERS):
        cached = DeepCache(unet, 2, branch)
        cached(*inputs(0))
        cached.next_step()
        errors.append((cached(*inputs(1)) - unet(*inputs(1))).pow(2).mean().item())
    assert errors == sorted(errors, reverse=True)


def test_pipeline(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    settings = {"num_inference_steps": 6, "seed": 5}
    exact = draw(pipe, **settings)[0]
    assert torch.equal(draw(pipe, deep_cache=1, **settings)[0], exact)
    calls: list[int] = []
    pipe.unet.mid_block.register_forward_hook(lambda *_: calls.append(1))
    near = draw(pipe, deep_cache=3, **settings)[0]
    assert len(calls) == 2
    assert difference(near, exact) > 1e-3
    assert (near - exact).pow(2).mean() < 0.5 * exact.pow(2).mean()
    fast = draw(pipe.optimize(), deep_cache=3, **settings)[0]
    assert difference(fast, near) <= 1e-4


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"deep_cache": 0}, "deep_cache is 0; it must be at least 1"),
        ({"deep_cache": 2, "deep_cache_branch": 1}, "has branches 0 to 0"),
        ({"deep_cache": 2, "deep_cache_branch": -1}, "deep_cache_branch is -1"),
    ],
)
def test_wrong_arguments(folder: Path, arguments: dict[str, int], problem: str) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    with pytest.raises(ArgumentError, match=problem):
        pipe("a red car", **arguments)
