"""Networks of other models (Flux, Stable Diffusion 3, video, …), told by the names of their layers.

They are known to be refused by name: none of them is supported. Names are those of the models' own
code, of diffusers, and of the tools that train LoRAs. Needs no PyTorch.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Backbone(NamedTuple):
    """A network of another architecture; in names, dots count as underscores.

    Attributes:
        begin: how a tensor's name begins, behind a tool's prefix.
        layer: what else names of a LoRA's layers hold, anywhere.
    """

    name: str
    begin: str
    layer: str = ""


PREFIX = (
    r"^(?:lora_unet_|lora_transformer_|lycoris_|base_model_model_)?"
    r"(?:model_)?(?:diffusion_model_|transformer_|net_)?"
)
TRANSFORMER = "a transformer, such as PixArt, LTX-Video or CogVideoX"
# The first row that fits names a network: a more special one stands before those it resembles.
BACKBONES = (
    Backbone(
        "HunyuanVideo",
        r"txt_in_individual_token_refiner_",
        r"(?:img|txt)_mlp_fc\d|token_refiner",
    ),
    Backbone("Chroma", r"distilled_guidance_layer_", r"distilled_guidance_layer"),
    Backbone("Flux 2", r"(?:single_stream_modulation|double_stream_modulation_img)_"),
    Backbone(
        "AuraFlow",
        r"double_layers_|cond_seq_linear_",
        r"joint_transformer_blocks|(?:double|single)_layers_\d",
    ),
    Backbone(
        "Flux",
        r"(?:double_blocks|single_blocks|single_transformer_blocks)_",
        r"single_transformer_blocks|double_blocks_\d|single_blocks_\d",
    ),
    Backbone(
        "Qwen-Image",
        r"transformer_blocks_\d+_(?:img|txt)_(?:mod|mlp)_",
        r"transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)",
    ),
    Backbone(
        "HiDream",
        r"double_stream_blocks_",
        r"(?:double|single)_stream_blocks|caption_projection_\d+_linear",
    ),
    Backbone(
        "Stable Diffusion 3",
        r"joint_blocks_|transformer_blocks_\d+_norm1_context_",
        r"joint_blocks_\d|transformer_blocks_\d+_attn_(?:add_\w_proj|to_add)",
    ),
    Backbone(
        "Wan video",
        r"blocks_\d+_cross_attn_|head_modulation$",
        r"blocks_\d+_(?:(?:self|cross)_attn_[qkvo]|ffn_\d|ffn_net)",
    ),
    Backbone("LTX video", r"patchify_proj_|av_ca_a2v_gate_adaln_single_"),
    Backbone(
        "Lumina or Z-Image",
        r"cap_embedder_|layers_\d+_(?:adaLN_modulation|attention)_",
        r"layers_\d+_(?:attention_(?:qkv|out|to_|w)|feed_forward_w\d)",
    ),
    Backbone("PixArt", r"adaln_single_|t_block_"),
    Backbone(
        "Hunyuan-DiT",
        r"mlp_t5_|extra_embedder_",
        r"blocks_\d+_attn\d_(?:Wqkv|q_proj|kv_proj|out_proj)",
    ),
    Backbone(
        "Stable Cascade",
        r"clip_txt_mapper_|down_blocks_\d+_\d+_channelwise_",
        r"lora_prior_|^prior_|kv_mapper|channelwise",
    ),
    Backbone("Kandinsky", r"encoder_hid_proj_|add_embedding_image_norm_"),
    Backbone("Mochi video", r"blocks_\d+_attn_qkv_x_", r"blocks_\d+_attn_qkv_[xy]"),
    Backbone("Cosmos", r"x_embedder_proj_1_"),
    Backbone(
        TRANSFORMER,
        r"transformer_blocks_\d+_|blocks_\d+_attn_",
        r"^(?:lora_)?transformer_|^(?:lora_unet_|diffusion_model_|lycoris_)"
        r"(?:transformer_)?(?:blocks|layers)_\d",
    ),
    Backbone(
        "a language model",
        r"(?:blk_\d+_attn_\w+|layers_\d+_self_attn)_",
        r"^(?:model_)?layers_\d+_(?:self_attn|mlp)_(?:gate|up|down|\w)_proj",
    ),
)


def find_backbone(names: str, lora: bool = False) -> str | None:
    """Name the model whose network, or the LoRA for it, has the names, one a line; else None.

    lora: whether they are a LoRA's layers, which fewer letters tell apart.
    """
    names = names.replace(".", "_")
    for name, begin, layer in BACKBONES:
        pattern = f"{PREFIX}(?:{begin})|{layer}" if lora and layer else f"{PREFIX}(?:{begin})"
        if re.search(pattern, names, re.MULTILINE):
            return name
    return None


def is_backbone(name: str) -> bool:
    """Whether a kind's name is that of another architecture."""
    return any(name == backbone.name for backbone in BACKBONES)
