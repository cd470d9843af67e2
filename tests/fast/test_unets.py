"""U-Nets of every kind, of latents or pixels, by text or class: faster layers, the same numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.classes.classifier import Classifier
from ldm.config import ClassifierConfig, UNetConfig
from ldm.fast import onednn, packed, slow_down, speed_up
from ldm.fast.deepcache import DeepCache
from ldm.pipeline import Pipeline
from ldm.unet import UNet
from tests.classes.test_labels import CONFIG, pipeline
from tests.fast.test_fast import count_packed
from tests.helpers.networks import difference, randomize

Asked = dict[str, Tensor]  # the arguments of a U-Net


@pytest.fixture(autouse=True)
def every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of tests are small; pack them nevertheless."""
    monkeypatch.setattr(packed, "LARGE", 1)


def at_random(seed: int) -> UNetConfig:
    """Even seeds read a text, odd ones are as ADM's."""
    pick = random.Random(seed)
    levels = pick.choice([1, 2, 3])
    text, shared = seed % 2 == 0, ("DownBlock2D", "UpBlock2D")
    kinds = [pick.random() < 0.6 for _ in range(2 * levels)]
    attention = "CrossAttn" if text else "Attn"
    down, up = (
        tuple(f"{attention}{kind}" if yes else kind for yes in some)
        for kind, some in zip(shared, (kinds[:levels], kinds[levels:]), strict=True)
    )
    more: dict[str, Any] = {"cross_attention_dim": 24, "attention_head_dim": 2} if text else {
        "cross_attention_dim": None,
        "attention_head_dim": 4,
        "downsample_type": pick.choice(["conv", "resnet"]),
        "upsample_type": pick.choice(["conv", "resnet"]),
        "add_attention": pick.random() < 0.7,
        "center_input_sample": pick.random() < 0.3,
        "in_channels": pick.choice([1, 3]),
        "out_channels": pick.choice([1, 3, 6]),
    }  # fmt: skip
    if not text and pick.random() < 0.4:  # blocks that resample by residual blocks
        down = tuple("ResnetDownsampleBlock2D" if "Attn" not in one else one for one in down)
        up = tuple("ResnetUpsampleBlock2D" if "Attn" not in one else one for one in up)
    return UNetConfig(
        block_out_channels=tuple(pick.choice([8, 16, 24]) for _ in range(levels)),
        down_block_types=down,
        up_block_types=up,
        layers_per_block=pick.choice([1, 2, 3]),
        norm_num_groups=4,
        resnet_time_scale_shift=pick.choice(["default", "scale_shift"]),
        dropout=pick.choice([0.0, 0.3]),
        num_class_embeds=None if text else pick.choice([None, 7]),
        **more,
    )


def asked(config: UNetConfig, batch: int, size: tuple[int, int]) -> Callable[[int], Asked]:
    """Step → what the U-Net is asked then: another x and time, the same text or classes."""
    generator = torch.Generator().manual_seed(batch)
    told: Asked = {}
    if config.cross_attention_dim:
        told["context"] = torch.randn(batch, 5, config.cross_attention_dim, generator=generator)
    if config.class_conditional:
        told["class_labels"] = torch.arange(batch) * 3
    steps = torch.randn(4, batch, config.in_channels, *size, generator=generator)
    return lambda step: {"x": steps[step], "t": torch.full((batch,), 900.0 - 9 * step)} | told


def converted(told: Asked, dtype: torch.dtype) -> Asked:
    return {k: v if k in ("t", "class_labels") else v.to(dtype) for k, v in told.items()}


SEEDS = (0, 2, 3, 4, 5, 6, 7, 9, 11, 13)  # one to three levels, all kinds of blocks
SIZES = [(8, 8), (5, 12), (12, 7), (16, 4)]
CASES = [(seed, 1 + seed % 3, SIZES[seed % 4]) for seed in SEEDS]


@pytest.mark.parametrize(("seed", "batch", "size"), CASES)
@torch.no_grad()
def test_layers(seed: int, batch: int, size: tuple[int, int]) -> None:
    config = at_random(seed)
    unet = randomize(UNet(config), seed)
    told = asked(config, batch, size)(0)
    exact = unet(**told)
    for dtype in (torch.float32, torch.bfloat16):
        unet.to(dtype)
        mine = converted(told, dtype)
        plain = unet(**mine)
        speed_up(unet)
        for _ in range(2):  # packing, and packed
            got = unet(**mine)
            if dtype == torch.float32:
                assert difference(got, exact) <= 1e-4 * exact.std()
            else:
                error, allowed = (difference(y.float(), exact) for y in (got, plain))
                assert error <= 1.5 * allowed + 1e-3
        if onednn.packs(dtype):
            assert count_packed(unet) >= 8
        slow_down(unet)
        assert torch.equal(unet(**mine), plain)


def short_step(unet: UNet, branch: int, then: Asked, now: Asked) -> Tensor:
    """By the definition: ``now`` in full, but deep features that are those of ``then``."""
    resnets = unet.up_blocks[-1].resnets
    entry = resnets[len(resnets) - 1 - branch]
    deep: list[Tensor] = []

    def exchange(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        width = x.shape[1] - unet.config.block_out_channels[0]
        deep.append(x[:, :width])
        return (torch.cat([deep[0], x[:, width:]], dim=1), *rest)

    handle = entry.register_forward_pre_hook(exchange)
    try:
        unet(**then)
        return unet(**now)
    finally:
        handle.remove()


@pytest.mark.parametrize(("seed", "batch", "size"), CASES)
@torch.no_grad()
def test_deep_cache(seed: int, batch: int, size: tuple[int, int]) -> None:
    config = at_random(seed)
    unet = randomize(UNet(config), seed)
    at = asked(config, batch, size)
    whole = [unet(**at(step)) for step in range(3)]
    for branch in range(config.layers_per_block):
        want = [whole[0], short_step(unet, branch, at(0), at(1)), whole[2]]
        assert difference(want[1], whole[1]) > 1e-4
        for change in (slow_down, speed_up):
            change(unet)
            cached = DeepCache(unet, 2, branch)
            for step in range(3):
                assert difference(cached(**at(step)), want[step]) <= 1e-4 * want[step].std()
                cached.next_step()
        slow_down(unet)


@torch.no_grad()
def test_another_text_or_class_is_computed_whole() -> None:
    for seed, name in ((0, "context"), (1, "class_labels")):
        config = at_random(seed) if seed == 0 else CONFIG
        if seed:
            config = UNetConfig(**{**vars(CONFIG), "num_class_embeds": 7})
        unet = randomize(UNet(config), seed)
        first = asked(config, 2, (8, 8))(0)
        other = first | {name: first[name] + 1}
        cached = DeepCache(unet, 3)
        for told in (first, other):
            assert torch.equal(cached(**told), unet(**told))
        again = first | {"x": first["x"] + 1}
        assert difference(cached(**again), unet(**again)) > 1e-4  # the first one is still known


JUDGE = ClassifierConfig(
    in_channels=1,
    sample_size=8,
    num_classes=10,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    attention_head_dim=8,
    norm_num_groups=4,
    attn_norm_num_groups=4,
)
PIPELINES: dict[str, tuple[Callable[[], Pipeline], list[str], dict[str, Any]]] = {
    "classes": (lambda: pipeline(11), ["seven", "2"], {"guidance_scale": 3.0}),
    "nothing in particular": (lambda: pipeline(None, None), [""], {}),
    "a classifier": (
        lambda: pipeline(None, classifier=randomize(Classifier(JUDGE), 7)),
        ["7"],
        {"classifier_scale": 20.0},
    ),
    "a classifier, DDIM": (
        lambda: pipeline(11, classifier=randomize(Classifier(JUDGE), 7)),
        ["7"],
        {"classifier_scale": 20.0, "sampler": "ddim", "tiling": True},
    ),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_models_of_pixels(kind: str) -> None:
    make, prompts, arguments = PIPELINES[kind]
    pipe = make()
    arguments |= {"num_inference_steps": 6, "seed": 4, "output_type": "pt"}
    calls: list[int] = []
    pipe.unet.mid_block.register_forward_hook(lambda *_: calls.append(1))

    def draw(**more: Any) -> Tensor:
        calls.clear()
        return pipe(prompts, **arguments, **more).images

    exact = draw()
    assert len(calls) == 6
    near = draw(deep_cache=3)
    assert len(calls) == 2
    assert difference(near, exact) > 1e-4
    assert pipe.optimize() is pipe
    assert difference(draw(), exact) <= 1e-4
    assert count_packed(pipe.unet) > 8
    assert difference(draw(deep_cache=3), near) <= 1e-4
    pipe.optimize(False)
    assert torch.equal(draw(), exact)
