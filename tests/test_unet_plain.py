"""U-Nets without text: the same numbers as diffusers' UNet2DModel on the same random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.checkpoints.folder import load_component, save_component
from ldm.config import UNetConfig
from ldm.errors import ArgumentError
from ldm.layers import ResnetBlock
from ldm.unet import UNet
from tests.helpers.networks import difference, norm_eps, ours_like, randomize

diffusers = pytest.importorskip("diffusers")

TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
# google/ddpm-cifar10-32 and ddpm-celebahq-256: the keys are theirs, the widths smaller.
DDPM: dict[str, Any] = {
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "dropout": 0.1,
    "layers_per_block": 2,
}
CIFAR = DDPM | {
    "block_out_channels": (16, 32, 32, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
CELEBA = DDPM | {
    "block_out_channels": (8, 8, 16, 16, 24, 24),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
}
IMPROVED: dict[str, Any] = {  # Nichol & Dhariwal 2021: four heads, learned variance
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 4,
    "attention_head_dim": 4,
    "layers_per_block": 3,
}
ADM = IMPROVED | {  # Dhariwal & Nichol 2021
    "block_out_channels": (8, 16, 24),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attention_head_dim": 8,
    "num_class_embeds": 10,
    "layers_per_block": 2,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "DDPM, CIFAR": CIFAR,
    "DDPM, CelebA": CELEBA,
    "Improved DDPM": IMPROVED,
    "ADM": ADM,
    "attention on the fine level only": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "add_attention": False,
    },
    "no attention": {
        "block_out_channels": (20, 12),  # which no head of 8 channels divides
        "down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "UpBlock2D"),
        "add_attention": False,
    },
    "attention down only, one level": {
        "block_out_channels": (16,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "resnet down, conv up": {
        "down_block_types": ("AttnDownBlock2D",) * 2,
        "downsample_type": "resnet",
    },
    "conv down, resnet up": {
        "up_block_types": ("AttnUpBlock2D",) * 2,
        "upsample_type": "resnet",
    },
    "plain blocks resample by convolution in any case": {
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "the middle not normalised": {"resnet_time_scale_shift": "scale_shift"},
    "groups of the middle": {"attn_norm_num_groups": 16},
    "input in [0, 1]": {"center_input_sample": True},
    "grey": {"in_channels": 1, "out_channels": 1},
    "told a number": {"class_embed_type": "timestep"},
    "told an embedding": {"class_embed_type": "identity"},
}


def pair(values: dict[str, Any]) -> tuple[nn.Module, UNet]:
    """(theirs, ours) on the same random weights."""
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(**values)
    theirs = randomize(theirs.to_empty(device="cpu"))
    config = UNetConfig.from_dict({**theirs.config, "_class_name": "UNet2DModel"})
    return theirs, ours_like(theirs, UNet, config)


def inputs(config: UNetConfig, batch: int, height: int, width: int) -> tuple[Tensor, dict]:
    """Random (x, the keyword of the classes where there are any)."""
    generator = torch.Generator().manual_seed(height * width)
    x = torch.randn(batch, config.in_channels, height, width, generator=generator)
    labels = {
        "timestep": torch.arange(batch) * 10.5,
        "identity": torch.randn(batch, 4 * config.block_out_channels[0], generator=generator),
        None: torch.arange(batch) * 3,
    }[config.class_embed_type]
    return x, {"class_labels": labels} if config.class_conditional else {}


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_as_diffusers(layout: str) -> None:
    theirs, ours = pair(TINY | LAYOUTS[layout])
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert norm_eps(ours) == norm_eps(theirs)
    step = 2 ** (ours.config.levels - 1)  # diffusers can only draw multiples of it
    for height, width in ((step, 3 * step), (2 * step, step)):
        x, classes = inputs(ours.config, 3, height, width)
        t = torch.tensor([0, 501, 999.5])
        want = theirs(x, t, **classes).sample
        assert difference(ours(x, t, **classes), want) <= 1e-5, (height, width)


@pytest.mark.parity
def test_odd_sizes() -> None:
    """diffusers cannot; ours keeps the size, and sees every row and column."""
    for layout in ("tiny", "DDPM, CIFAR", "ADM"):
        _, ours = pair(TINY | LAYOUTS[layout])
        x, classes = inputs(ours.config, 1, 9, 13)
        t = torch.tensor([5])
        out = ours(x, t, **classes)
        assert out.shape == (1, ours.config.out_channels, 9, 13)
        changed = x.clone()
        changed[..., -1, -1] += 1
        assert difference(ours(changed, t, **classes), out) > 1e-3


def test_residual_halving_sees_the_last_row() -> None:
    """Odd sizes end in means of fewer pixels; at even ones diffusers is the judge."""
    block = randomize(ResnetBlock(4, 4, 2, 1e-5, resample="down"))
    x = torch.randn(1, 4, 7, 5, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., -1, -1] += 1
    assert block(x).shape == (1, 4, 4, 3)  # as a strided convolution has it
    assert difference(block(changed), block(x)) > 1e-2
    pixel = x[..., :1, :1].repeat(1, 1, 2, 2)
    assert difference(block(pixel), block(x[..., :1, :1])) <= 1e-5  # one is its own mean


@pytest.mark.parity
@pytest.mark.parametrize("layout", ["DDPM, CIFAR", "ADM"])
def test_each_loads_what_the_other_saved(tmp_path: Path, layout: str) -> None:
    theirs, ours = pair(TINY | LAYOUTS[layout])
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_component(UNet, tmp_path / "theirs", None)
    save_component(ours, tmp_path / "ours")
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
    assert loaded.config == ours.config
    x, classes = inputs(ours.config, 2, 8, 16)
    t = torch.tensor([3, 700])
    want = theirs(x, t, **classes).sample
    assert difference(loaded(x, t, **classes), want) <= 1e-5
    assert torch.equal(back.requires_grad_(False)(x, t, **classes).sample, want)


@pytest.mark.parity
def test_old_names_of_attention(tmp_path: Path) -> None:
    """As google/ddpm-* are stored: a config of 2022, query/key/value/proj_attn in every level."""
    theirs, ours = pair(TINY | DDPM | {"down_block_types": ("AttnDownBlock2D",) * 2})
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = theirs.state_dict()
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    assert any("down_blocks.1.attentions.1.query.weight" in key for key in tensors)
    new_keys = ("add_attention", "attn_norm_num_groups", "class_embed_type", "num_class_embeds")
    config = {k: v for k, v in theirs.config.items() if k not in new_keys}
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    torch.save(tensors, tmp_path / "diffusion_pytorch_model.bin")
    loaded = load_component(UNet, tmp_path, None)
    x, t = inputs(ours.config, 2, 8, 8)[0], torch.tensor([0, 800])
    assert difference(loaded(x, t), theirs(x, t).sample) <= 1e-5


@pytest.mark.parity
def test_dropout_is_of_training_only() -> None:
    # Without attention, after which the values lie in memory, and so are drawn, in another order.
    theirs, ours = pair(TINY | LAYOUTS["no attention"] | {"dropout": 0.3, "layers_per_block": 2})
    x, t = inputs(ours.config, 2, 8, 8)[0], torch.tensor([0, 800])
    still = ours(x, t)
    torch.manual_seed(7)
    want = theirs.train()(x, t).sample
    torch.manual_seed(7)
    got = ours.train()(x, t)
    assert difference(got, want) <= 1e-5  # the same values fall out
    assert difference(got, still) > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("layout", ["DDPM, CIFAR", "ADM"])
def test_gradients_memory_format_and_bf16(layout: str) -> None:
    theirs, ours = pair(TINY | LAYOUTS[layout])
    x, classes = inputs(ours.config, 2, 8, 16)
    t = torch.tensor([5, 800])
    theirs.requires_grad_(True)(x, t, **classes).sample.square().mean().backward()
    want = {name: p.grad for name, p in theirs.named_parameters()}
    ours.requires_grad_(True).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        ours.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = ours(x, t, **classes)
        out.float().square().mean().backward()
        got = {name: p.grad for name, p in ours.named_parameters()}
        away = sum((got[name] - want[name]).square().sum() for name in want).sqrt()
        size = sum(each.square().sum() for each in want.values()).sqrt()
        assert away / size <= limit, dtype  # of the whole gradient


@pytest.mark.parity
def test_full_sizes() -> None:
    """35.7 million parameters (Ho et al. 2020, appendix B), 296 (ADM, 64×64, table 4 there)."""
    cifar = CIFAR | {"block_out_channels": (128, 256, 256, 256)}
    imagenet = {
        "sample_size": 64,
        "out_channels": 6,
        "block_out_channels": (192, 384, 576, 768),
        "down_block_types": ("ResnetDownsampleBlock2D",) + ("AttnDownBlock2D",) * 3,
        "up_block_types": ("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "layers_per_block": 3,
        "attention_head_dim": 64,
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": 1000,
    }
    for values, millions in ((cifar, 35.7), (imagenet, 295.9)):
        with torch.device("meta"):
            theirs = diffusers.UNet2DModel(**values)
            ours = UNet(UNetConfig.from_dict({"_class_name": "UNet2DModel", **values}))
        shapes = {key: value.shape for key, value in ours.state_dict().items()}
        assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
        assert round(sum(p.numel() for p in ours.parameters()) / 1e6, 1) == millions


def test_arguments_must_be_the_models() -> None:
    plain = UNet(UNetConfig.from_dict({"_class_name": "UNet2DModel", **TINY}))
    told = UNet(UNetConfig.from_dict({"_class_name": "UNet2DModel", **TINY, **ADM}))
    x, t, label = torch.zeros(1, 3, 8, 8), torch.tensor([1]), torch.tensor([2])
    with pytest.raises(ArgumentError, match="class_labels is missing"):
        told(x, t)
    with pytest.raises(ArgumentError, match="class_labels is given"):
        plain(x, t, class_labels=label)
    with pytest.raises(ArgumentError, match="context is given"):
        plain(x, t, torch.zeros(1, 7, 8))
