"""InstantStyle's blocks of SDXL's own U-Net, beside those that diffusers' scales name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm.checkpoints.family import read_family
from ldm.checkpoints.folder import empty
from ldm.control.ip_adapter_scale import BLOCKS, block_scales
from ldm.unet import UNet
from tests.helpers.ip_adapters import adapter_tensors, save_adapter

diffusers = pytest.importorskip("diffusers")
# Of diffusers' documentation of IP-Adapters: "Style & layout control with InstantStyle".
THEIRS: dict[str, Any] = {
    "style": {"up": {"block_0": [0.0, 1.0, 0.0]}},
    "layout": {"down": {"block_2": [0.0, 1.0]}},
    "style+layout": {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}},
}


@pytest.fixture(scope="module")
def unet() -> UNet:
    """SDXL's, without memory for its weights."""
    return empty(UNet, read_family("sdxl").unet)


@pytest.mark.parametrize("blocks", THEIRS)
def test_the_blocks_are_those_of_instantstyle(unet: UNet, blocks: str) -> None:
    """The ten transformer blocks of the second attention on the way down, or up."""
    names = {module: name for name, module in unet.named_modules()}
    chosen = {names[block].rpartition(".transformer_blocks")[0]: scale
              for block, scale in block_scales(unet, 1.0, 0.7, blocks).items()}  # fmt: skip
    expected = {
        "style": ["up_blocks.0.attentions.1"],
        "layout": ["down_blocks.2.attentions.1"],
        "style+layout": ["up_blocks.0.attentions.1", "down_blocks.2.attentions.1"],
    }
    assert chosen == dict.fromkeys(expected[blocks], 0.7)
    assert len(block_scales(unet, 1.0, 0.7, blocks)) == 10 * len(chosen)
    assert BLOCKS[blocks] == THEIRS[blocks]


@pytest.mark.parity
@pytest.mark.parametrize("blocks", THEIRS)
def test_diffusers_scales_the_same_attentions(unet: UNet, blocks: str, tmp_path: Any) -> None:
    """On diffusers' SDXL U-Net of the same layers and a few channels, by its own method."""
    config = unet.config.to_dict() | {
        "block_out_channels": (8, 8, 8), "cross_attention_dim": 8, "attention_head_dim": 2,
        "norm_num_groups": 4, "projection_class_embeddings_input_dim": 6 * 4 + 8,
        "addition_time_embed_dim": 4,
    }  # fmt: skip
    small = UNet(type(unet.config).from_dict(config))
    theirs = diffusers.UNet2DConditionModel.from_config(
        {key: value for key, value in config.items() if key != "num_attention_heads"}
    )
    tensors = adapter_tensors(small.config, "base")
    save_adapter(tmp_path / "ip.bin", tensors)
    state = torch.load(tmp_path / "ip.bin", weights_only=True)
    theirs._load_ip_adapter_weights([state])
    expanded = diffusers.loaders.unet_loader_utils._maybe_expand_lora_scales(
        theirs, [THEIRS[blocks]], default_scale=0.0
    )[0]
    counted = set()
    for name, processor in theirs.attn_processors.items():
        if isinstance(getattr(processor, "scale", None), list | tuple):
            place = name.rpartition(".attn2")[0]
            if any(place.startswith(key) and scale for key, scale in expanded.items()):
                counted.add(place)
    names = {module: name for name, module in small.named_modules()}
    assert {names[block] for block in block_scales(small, 1.0, None, blocks)} == counted
    assert counted
