"""Networks of other models: a file and a LoRA of one are named alike, whoever asks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ldm.checkpoints.backbones import BACKBONES, TRANSFORMER, find_backbone, is_backbone
from ldm.checkpoints.describe import describe_header
from ldm.checkpoints.family import describe_other
from ldm.checkpoints.header import Header, TensorInfo
from ldm.checkpoints.lora_models import PARTS, other_model
from tests.helpers.lora_layouts import kohya
from tests.helpers.original_layouts import layout

# Layers of LoRAs, as the tools of each model write them.
LAYERS = {
    "HunyuanVideo": ["lora_unet_double_blocks_0_img_mlp_fc1"],
    "Chroma": ["diffusion_model.distilled_guidance_layer.layers.0.in_layer"],
    "AuraFlow": ["transformer.joint_transformer_blocks.0.attn.to_q", "lora_unet_double_layers_0_x"],
    "Flux": ["lora_unet_double_blocks_0_img_attn_qkv", "transformer.single_transformer_blocks.0.x"],
    "Qwen-Image": ["transformer.transformer_blocks.0.img_mlp.net.0.proj"],
    "HiDream": ["diffusion_model.double_stream_blocks.0.block.attn1.to_q"],
    "Stable Diffusion 3": ["transformer.transformer_blocks.0.attn.add_k_proj"],
    "Wan video": ["diffusion_model.blocks.0.self_attn.q", "lora_unet_blocks_0_cross_attn_k"],
    "Lumina or Z-Image": ["diffusion_model.layers.0.attention.qkv"],
    "Hunyuan-DiT": ["lora_unet_blocks_0_attn1_Wqkv"],
    "Stable Cascade": ["lora_prior_unet_down_blocks_0_1_attention_attn_in_proj"],
    "Mochi video": ["diffusion_model.blocks.0.attn.qkv_y"],
    TRANSFORMER: ["lora_unet_transformer_blocks_0_attn1_to_q"],
    "a language model": ["model.layers.0.mlp.gate_proj"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_loading_and_info_agree(name: str) -> None:
    for stem in LAYERS[name]:
        ends = ("lora_down", "lora_up") if stem.startswith("lora_") else ("lora_A", "lora_B")
        shapes = {f"{stem}.{end}.weight": (8, 8) for end in ends}
        assert other_model([stem]) == name
        assert f"for {name}, not a model" in describe_other(shapes)
        header = Header({key: TensorInfo("F16", shape) for key, shape in shapes.items()}, {})
        assert dict(describe_header(header, Path("x")))["for"] == f"{name} (not supported)"


def test_models_that_have_others_names() -> None:
    """AuraFlow has Flux's single blocks, and Qwen-Image layers of Stable Diffusion 3."""
    single = "transformer.single_transformer_blocks.0.attn.to_q"
    assert other_model([single, "transformer.joint_transformer_blocks.0.attn.to_q"]) == "AuraFlow"
    added = "transformer.transformer_blocks.0.attn.add_k_proj"
    assert other_model([added, "transformer.transformer_blocks.0.img_mod.1"]) == "Qwen-Image"
    assert other_model([added, single]) == "Flux"


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl_refiner"])
def test_our_models_are_none_of_them(family: str) -> None:
    names = "\n".join(layout(family))
    assert find_backbone(names) is None
    assert find_backbone(names.replace("model.diffusion_model.", ""), lora=True) is None


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_our_loras_are_for_none_of_them(family: str) -> None:
    assert other_model({name.split(".")[0] for name in kohya(family)}) is None


def test_the_table() -> None:
    names = [backbone.name for backbone in BACKBONES]
    assert len(names) == len(set(names))
    assert not set(names) & set(PARTS)
    assert all(map(is_backbone, names)) and not is_backbone("VAE")
    for _, begin, layer in BACKBONES:
        assert "." not in re.sub(r"\\.", "", begin + layer)  # dots count as underscores
