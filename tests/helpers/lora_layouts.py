"""Names and shapes in LoRA files of full size, by the rules of the tools that write them.

kohya (sd-scripts, networks/lora.py): every linear layer and convolution inside modules of some
classes, called a prefix and the path with underscores; SD 1 and 2 have diffusers' modules, SDXL
has the original ones. diffusers: "unet." and the path with dots. Shares nothing with ldm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

from tests.helpers.original_layouts import UNETS, Shapes, unet

RANK = 4
ATTENTION = ("Transformer2DModel",)  # kohya's UNET_TARGET_REPLACE_MODULE …
CONVOLUTIONS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")  # … and …_CONV2D_3X3
TEXT = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")
# The published config.json files, where they differ from diffusers' defaults or each other.
DIFFUSERS: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TEXTS = {  # width, layers
    "sd1": {"text_encoder": (768, 12)},
    "sd2": {"text_encoder": (1024, 23)},
    "sdxl": {"text_encoder": (768, 12), "text_encoder_2": (1280, 32)},
}


@cache
def diffusers_unet(family: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**DIFFUSERS[family])


@cache
def transformers_text(width: int, layers: int) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64,
    )  # fmt: skip
    with torch.device("meta"):
        return CLIPTextModel(config)


def inside(module: nn.Module, classes: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Path and weight's shape of each linear layer and convolution in modules of the classes."""
    for outer, parent in module.named_modules():
        if type(parent).__name__ in classes:
            for inner, child in parent.named_modules():
                if type(child).__name__ in ("Linear", "Conv2d"):
                    yield f"{outer}.{inner}", tuple(child.weight.shape)


def texts(family: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Part, path and shape of each layer; transformers 5 has dropped "text_model." of old files."""
    for part, size in TEXTS[family].items():
        for path, shape in inside(transformers_text(*size), TEXT):
            yield part, f"text_model.{path.removeprefix('text_model.')}", shape


def original_layers(family: str, convolutions: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """As ``inside``, under the original code's names."""
    block = r"(?:input_blocks|middle_block|output_blocks)[\d.]+"
    attention = re.compile(rf"{block}(?:proj_in|proj_out|transformer_blocks\..+)\.weight")
    resnet = r"(?:in_layers\.2|emb_layers\.1|out_layers\.3|skip_connection|op|conv)"
    convolution = re.compile(rf"{block}{resnet}\.weight")
    for name, shape in unet(**UNETS[family]).items():
        if len(shape) == 1:  # a bias, or a norm
            continue
        if attention.fullmatch(name) or (convolutions and convolution.fullmatch(name)):
            yield name.removesuffix(".weight"), shape


def pair(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes down and up for a weight's: the kernel is in the first."""
    return (RANK, *shape[1:]), (shape[0], RANK, *(1,) * (len(shape) - 2))


def kohya(family: str, convolutions: bool = False) -> Shapes:
    if family == "sdxl":
        layers = list(original_layers(family, convolutions))
    else:
        classes = ATTENTION + (CONVOLUTIONS if convolutions else ())
        layers = list(inside(diffusers_unet(family), classes))
    two = "text_encoder_2" in TEXTS[family]
    prefixes = {"text_encoder": "lora_te1_" if two else "lora_te_", "text_encoder_2": "lora_te2_"}
    named = [(f"lora_unet_{path}", shape) for path, shape in layers]
    named += [(f"{prefixes[part]}{path}", shape) for part, path, shape in texts(family)]
    shapes: Shapes = {}
    for name, shape in named:
        name = name.replace(".", "_")
        shapes[f"{name}.alpha"] = ()
        shapes[f"{name}.lora_down.weight"], shapes[f"{name}.lora_up.weight"] = pair(shape)
    return shapes


def processor(path: str) -> str:
    """diffusers before 0.22: the LoRA was a part of the attention's processor."""
    return re.sub(r"\.to_(\w+?)(?:\.0)?$", r".processor.to_\1_lora", path)


def diffusers_names(
    family: str, ends: tuple[str, str], rename: Callable[[str], str] = str, with_texts: bool = True
) -> Shapes:
    """peft's target_modules of diffusers' training scripts: attention, with its text encoders'."""
    named = [
        (f"unet.{rename(path)}", shape)
        for path, shape in inside(diffusers_unet(family), ATTENTION)
        if re.search(r"\.to_(q|k|v|out\.0)$", path)
    ]
    if with_texts:
        named += [
            (f"{part}.{path}", shape) for part, path, shape in texts(family) if "self_attn" in path
        ]
    shapes: Shapes = {}
    for name, shape in named:
        for end, each in zip(ends, pair(shape), strict=True):
            shapes[name + end] = each
    return shapes
