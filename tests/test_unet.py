"""The U-Net: the same numbers as diffusers' on the same random weights, in many layouts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.config import UNetConfig
from ldm.errors import ArgumentError
from ldm.layers import timestep_embedding
from ldm.unet import UNet
from tests.helpers.networks import difference, norm_eps, ours_like, randomize

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.parity

TINY: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}
THREE: dict[str, Any] = {
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
}
XL_LEVELS: dict[str, Any] = {
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2, 4),
    "use_linear_projection": True,
}
FOUR: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 32),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
TINY_SD: dict[str, Any] = {
    "block_out_channels": (8, 16, 32),
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "attention on the coarse level": {},
    "attention on the fine level, 2 layers": {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
    },
    "attention in the middle only, 3 layers": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 3,
    },
    "attention on the way down only": {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
    "one level": {
        "block_out_channels": (16,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    },
    "three levels, heads of each": {**THREE, "attention_head_dim": (1, 2, 8)},
    "widths that fall": {**THREE, "block_out_channels": (32, 16, 48), "layers_per_block": 2},
    "linear projection": {"use_linear_projection": True},
    "two transformers everywhere": {"transformer_layers_per_block": 2},
    "depth of each level, linear": {
        **THREE,
        "transformer_layers_per_block": [2, 1, 3],
        "use_linear_projection": True,
    },
    "sine first": {"flip_sin_to_cos": False},
    "shifted frequencies": {"freq_shift": 1},
    "large norm_eps": {"norm_eps": 0.1},
    "padding below and to the right": {"downsample_padding": 0},
    "adaptive normalisation, three layers": {
        "resnet_time_scale_shift": "scale_shift",
        "layers_per_block": 3,
    },
    "input in [0, 1]": {"center_input_sample": True},
    "nine channels in, five out": {"in_channels": 9, "out_channels": 5},
    # Distilled U-Nets: what their configurations have.
    "SSD-1B": {
        **XL_LEVELS,
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [[1], [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "Segmind Vega": {
        **XL_LEVELS,
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 1, 2],
    },
    "KOALA-700M": {
        **XL_LEVELS,
        "mid_block_type": None,
        "transformer_layers_per_block": [1, 2, 5],
    },
    "KOALA-1B": {**XL_LEVELS, "transformer_layers_per_block": [1, 2, 6]},
    "BK-SDM-Base": FOUR,
    "BK-SDM-Small": {**FOUR, "mid_block_type": None},
    "BK-SDM-Tiny": {**TINY_SD, "mid_block_type": None},
    "SDXS-512-0.9": {
        **TINY_SD,
        "mid_block_type": None,
        "only_cross_attention": [True, False, False],
        "use_linear_projection": True,
    },
    "only the text, everywhere": {"only_cross_attention": True},
    "layers of each level": {**THREE, "layers_per_block": [1, 3, 2]},
    "layers and depths of each level": {
        **THREE,
        "layers_per_block": [2, 1, 3],
        "transformer_layers_per_block": [[1, 2], 1, [3, 1, 2]],
        "reverse_transformer_layers_per_block": [[1, 2, 3, 1], 7, [2, 1, 1]],
    },
    "attention without blocks": {"transformer_layers_per_block": [1, 0]},
}
SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}  # the rest is the default


def pair(values: dict[str, Any]) -> tuple[nn.Module, UNet]:
    """(theirs, ours) on the same random weights."""
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**values)
    theirs = randomize(theirs.to_empty(device="cpu"))
    config = UNetConfig.from_dict(dict(theirs.config))
    return theirs, ours_like(theirs, UNet, config)


def inputs(config: UNetConfig, batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Random (x, context)."""
    generator = torch.Generator().manual_seed(height * width)
    x = torch.randn(batch, config.in_channels, height, width, generator=generator)
    return x, torch.randn(batch, 7, config.cross_attention_dim, generator=generator)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_as_diffusers(layout: str) -> None:
    theirs, ours = pair(TINY | LAYOUTS[layout])
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert norm_eps(ours) == norm_eps(theirs)
    sizes = [(8, 8), (7, 5), (1, 9)]
    for height, width in sizes if ours.config.downsample_padding else sizes[:2]:
        x, context = inputs(ours.config, 3, height, width)
        t = torch.tensor([0, 501, 999])
        want = theirs(x, t, context).sample
        assert difference(ours(x, t, context), want) <= 1e-5, (height, width)


@pytest.mark.parametrize("kind", [None, "timestep", "identity"])
def test_classes_beside_the_text(kind: str | None) -> None:
    theirs, ours = pair(TINY | {"num_class_embeds": 5, "class_embed_type": kind})
    x, context = inputs(ours.config, 2, 8, 8)
    t = torch.tensor([3, 4])
    labels = torch.randn(2, 64) if kind == "identity" else torch.tensor([4, 1])
    out = ours(x, t, context, class_labels=labels)
    assert difference(out, theirs(x, t, context, class_labels=labels).sample) <= 1e-5
    assert difference(ours(x, t, context, class_labels=labels.flip(0)), out) > 1e-3
    with pytest.raises(ArgumentError, match="class_labels is missing"):
        ours(x, t, context)
    with pytest.raises(ArgumentError, match="context is missing"):
        ours(x, t, class_labels=labels)


def test_fractional_timesteps() -> None:
    theirs, ours = pair(TINY)
    x, context = inputs(ours.config, 2, 6, 6)
    t = torch.tensor([0.25, 731.6])
    want = theirs(x, t, context).sample
    assert difference(ours(x, t, context), want) <= 1e-5
    assert difference(ours(x, t.round(), context), want) > 1e-3  # the fraction counts


def test_every_input_counts() -> None:
    _, unet = pair(TINY)
    x, context = inputs(unet.config, 2, 6, 6)
    t = torch.tensor([100, 200])
    out = unet(x, t, context)
    alone = unet(x[1:], t[1:], context[1:])
    assert difference(out[1:], alone) <= 1e-5  # pictures do not see each other
    assert difference(unet(x, t + 50, context), out) > 1e-3
    assert difference(unet(x, t, context.flip(1)), out) <= 1e-5  # tokens are a set here
    assert difference(unet(x, t, context.flip(0)), out) > 1e-3


def test_num_attention_heads_overrides_attention_head_dim() -> None:
    """diffusers refuses to build with it, but reads it before the misnamed key."""
    _, plain = pair(TINY | {"attention_head_dim": (2, 8)})
    config = UNetConfig(**TINY | {"attention_head_dim": 4, "num_attention_heads": (2, 8)})
    other = ours_like(plain, UNet, config)
    x, context = inputs(config, 2, 6, 6)
    t = torch.tensor([3, 4])
    assert torch.equal(other(x, t, context), plain(x, t, context))
    four = ours_like(plain, UNet, UNetConfig(**TINY))
    assert difference(four(x, t, context), plain(x, t, context)) > 1e-3


def test_memory_format_does_not_matter() -> None:
    _, unet = pair(TINY)
    x, context = inputs(unet.config, 2, 7, 5)
    t = torch.tensor([3, 4])
    want = unet(x, t, context)
    unet.to(memory_format=torch.channels_last)
    got = unet(x.to(memory_format=torch.channels_last), t, context)
    assert difference(got, want) <= 1e-5


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1), (True, 0.5)])
def test_timestep_embedding(flip: bool, shift: float) -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0, 1, 37.5, 999])
    want = get_timestep_embedding(t, 32, flip_sin_to_cos=flip, downscale_freq_shift=shift)
    got = timestep_embedding(t, 32, flip, shift)
    assert difference(got, want) <= 1e-6
    sines = got[:, 16:] if flip else got[:, :16]
    assert sines[0].abs().max() == 0  # sin 0


def test_full_size() -> None:
    """Stable Diffusion 1.5's U-Net, 859.5 million parameters."""
    theirs, ours = pair(SD15)
    assert sum(p.numel() for p in ours.parameters()) == 859_520_964
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 16, 12, generator=generator)
    context = torch.randn(2, 77, 768, generator=generator)
    t = torch.tensor([981, 40])
    want = theirs(x, t, context).sample
    assert 0.1 < want.std() < 10
    assert difference(ours(x, t, context), want) <= 1e-4
