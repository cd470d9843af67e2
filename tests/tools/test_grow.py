"""A U-Net with more layers and the same output."""

import json
from pathlib import Path

import pytest
import torch

from ldm.checkpoints.folder import load_component
from ldm.config import UNetConfig
from ldm.errors import ArgumentError
from ldm.unet import UNet
from tools.builtin_model.grow import grow, main

ROOT = Path(__file__).parents[2]
SMALL = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "cross_attention_dim": 16,
}
ATTENTION = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}


def unet(**changes: object) -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig.from_dict(SMALL | changes))


@pytest.mark.parametrize(
    ("before", "changes"),
    [
        ({}, {"layers_per_block": 2}),
        ({}, ATTENTION),
        ({}, {"layers_per_block": 3} | ATTENTION),
        ({}, {"layers_per_block": (1, 3)}),
        ({}, {"layers_per_block": (2, 1)}),
        ({}, {"transformer_layers_per_block": (1, 3)}),
        ({}, {"transformer_layers_per_block": (2, 3), "layers_per_block": 2} | ATTENTION),
        ({"layers_per_block": 2}, {"layers_per_block": 4} | ATTENTION),
    ],
)
@torch.no_grad()
def test_the_output_stays_and_new_layers_can_learn(before, changes) -> None:
    small = unet(**before)
    large = grow(small, UNetConfig.from_dict(SMALL | changes))
    zeros = [p for p in large.parameters() if p.ndim > 1 and not p.any()]
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 900.0]), torch.randn(2, 5, 16)
    expected = small(x, t, context)
    assert (large(x, t, context) - expected).abs().max() <= 1e-5 * expected.abs().max()
    with torch.enable_grad():
        large(x, t, context).square().mean().backward()
    assert zeros, "nothing begins as an identity"
    assert all(p.grad.abs().max() > 0 for p in zeros), "a layer of zeros has no way to learn"


def test_other_widths_are_refused() -> None:
    wide = UNetConfig.from_dict(SMALL | {"block_out_channels": (32, 96)})
    with pytest.raises(ArgumentError, match=r"the same block_out_channels"):
        grow(unet(), wide)
    with pytest.raises(ArgumentError, match="at least the same layers"):
        grow(unet(layers_per_block=2), UNetConfig.from_dict(SMALL))
    blocks = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    deep = UNetConfig.from_dict(SMALL | blocks | {"block_out_channels": (32, 64, 64)})
    with pytest.raises(ArgumentError, match="the network has 3 levels; expected 2"):
        grow(unet(), deep)


def test_the_command_makes_what_a_run_starts_with(tmp_path: Path, capsys) -> None:
    model = ["--model", str(ROOT / "weights")]
    assert main([*model, "--output", str(tmp_path / "grown")]) == 0
    assert "parameters have become 27.4M" in capsys.readouterr().out
    grown = load_component(UNet, tmp_path / "grown" / "unet", torch.float32)
    assert grown.config.layers_per_block == 2
    network = tmp_path / "network.json"
    network.write_text(json.dumps(SMALL))
    arguments = [*model, "--network", str(network), "--output", str(tmp_path / "none")]
    assert main(arguments) == 2
    assert not (tmp_path / "none").exists()
