"""The models that LoRA files of other programs are for, by the names of their layers.

They are known to be refused by name: none of them is supported. Needs no PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# The first pattern that a layer's name has, its dots as underscores, decides.
OTHERS = {
    "HunyuanVideo": r"(?:img|txt)_mlp_fc\d|token_refiner",
    "Chroma": r"distilled_guidance_layer",
    "Flux": r"single_transformer_blocks|double_blocks_\d|single_blocks_\d",
    "Qwen-Image": r"transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)",
    "HiDream": r"(?:double|single)_stream_blocks|caption_projection_\d+_linear",
    "AuraFlow": r"joint_transformer_blocks|(?:double|single)_layers_\d",
    "Stable Diffusion 3": r"joint_blocks_\d|transformer_blocks_\d+_attn_(?:add_\w_proj|to_add)",
    "Hunyuan-DiT": r"blocks_\d+_attn\d_(?:Wqkv|q_proj|kv_proj|out_proj)",
    "Wan": r"blocks_\d+_(?:(?:self|cross)_attn_[qkvo]|ffn_\d|ffn_net)",
    "Lumina or Z-Image": r"layers_\d+_(?:attention_(?:qkv|out|to_|w)|feed_forward_w\d)",
    "Mochi": r"blocks_\d+_attn_qkv_[xy]",
    "Stable Cascade": r"lora_prior_|^prior_|kv_mapper|channelwise",
    "AnimateDiff": r"motion_modules",
    "Stable Video Diffusion": r"temporal_transformer_blocks|time_stack|temp_attentions",
    "a transformer, such as PixArt, LTX-Video or CogVideoX": (
        r"^(?:lora_)?transformer_|^(?:lora_unet_|diffusion_model_|lycoris_)"
        r"(?:transformer_)?(?:blocks|layers)_\d"
    ),
    "the text encoder T5": r"SelfAttention|DenseReluDense|t5xxl|lora_te3_|text_encoder_3",
    "a large language model": r"(?:model_)?layers_\d+_(?:self_attn|mlp)_(?:gate|up|down|\w)_proj$",
}
PATTERNS = {name: re.compile(pattern) for name, pattern in OTHERS.items()}


def other_model(stems: Iterable[str]) -> str | None:
    """Name the model that layers of these names are for; None if it is not known."""
    stems = [stem.replace(".", "_") for stem in stems]
    for name, pattern in PATTERNS.items():
        if any(map(pattern.search, stems)):
            return name
    return None
