"""A family of very small models, and files of all kinds for them, under the published names."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ldm.checkpoints.family import FAMILIES, UNET, VAE, Family, read_family
from ldm.checkpoints.folder import empty
from ldm.checkpoints.original import write_original
from ldm.clip import CLIPTextEncoder
from ldm.config import CLIPVisionConfig, ControlNetConfig, IPAdapterConfig
from ldm.config.controlnet_union import ControlNetUnionConfig
from ldm.config.t2i_adapter import T2IAdapterConfig
from ldm.loading.single_file import names_of
from ldm.unet import UNet
from ldm.vae import AutoencoderKL

WIDTH = 8  # of the texts that the U-Net reads
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 8, "in_channels": 4, "block_out_channels": [8, 8], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": WIDTH,
    "attention_head_dim": 2, "norm_num_groups": 4,
}  # fmt: skip
VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": [4, 4, 4, 4], "layers_per_block": 1, "latent_channels": 4,
    "norm_num_groups": 2, "sample_size": 64, "scaling_factor": 0.18215,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT_CONFIG: dict[str, Any] = {
    "architectures": ["CLIPTextModel"], "hidden_size": WIDTH, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": WIDTH, "vocab_size": 20,
    "hidden_act": "quick_gelu", "eos_token_id": 19, "bos_token_id": 18, "pad_token_id": 19,
}  # fmt: skip


@cache
def family_name() -> str:
    """Write the family's file; return its name, which is a path."""
    full = read_family("sd1")
    scheduler = {k: v for k, v in full.scheduler.to_dict().items() if not k.startswith("_diff")}
    values = {
        "name": "Tiny Diffusion", "unet": UNET_CONFIG, "vae": VAE_CONFIG, "scheduler": scheduler,
        "texts": [{"part": "text_encoder", "prefix": "cond_stage_model.transformer.",
                   "names": "clip", "pad_token": "<|endoftext|>", "config": TEXT_CONFIG}],
    }  # fmt: skip
    path = Path(tempfile.mkdtemp(prefix="ldm-fuzz-tiny-"), "tiny")
    path.with_suffix(".json").write_text(json.dumps(values))
    return str(path)


@contextlib.contextmanager
def known() -> Iterator[None]:
    """Let files of the small family be read as those of Stable Diffusion are."""
    with mock.patch.dict(FAMILIES, {WIDTH: family_name()}):
        yield


@cache
def family() -> Family:
    return read_family(family_name())


def filled(module_class: type[nn.Module], config: Any, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a network, by its own names."""
    module = empty(module_class, config)
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=rng) * 0.5 - 0.25
        for name, value in module.state_dict().items()
    }


@cache
def parts() -> dict[str, dict[str, Tensor]]:
    """Tensors of the model's parts, by their own names."""
    return {
        "unet": filled(UNet, family().unet, 1),
        "vae": filled(AutoencoderKL, family().vae, 2),
        "text_encoder": filled(CLIPTextEncoder, family().texts[0].config, 3),
    }


@cache
def model(part: str) -> nn.Module:
    """A part with its weights."""
    from ldm.checkpoints.folder import fill

    kind = {"unet": UNet, "vae": AutoencoderKL, "text_encoder": CLIPTextEncoder}[part]
    config = {"unet": family().unet, "vae": family().vae}.get(part, family().texts[0].config)
    module = empty(kind, config)
    fill(module, {k: v.clone() for k, v in parts()[part].items()}, Path("tiny"), None)
    return module


@cache
def single_file() -> dict[str, Tensor]:
    """A whole model, by the original names."""
    own = parts()
    found = write_original(own["unet"], UNET, names_of(family().unet))
    found |= write_original(own["vae"], VAE, names_of(family().vae), True)
    return found | {f"{family().texts[0].prefix}{k}": v for k, v in own["text_encoder"].items()}


def control_config(union: bool = False) -> ControlNetConfig:
    kind = ControlNetUnionConfig if union else ControlNetConfig
    more = {"num_control_type": 2, "num_trans_channel": 4, "num_trans_layer": 1,
            "num_proj_channel": 4} if union else {}  # fmt: skip
    return kind.like(
        family().unet, conditioning_channels=3,
        conditioning_embedding_out_channels=[4, 4, 4, 4], **more,
    )  # fmt: skip


@cache
def controlnets() -> dict[str, dict[str, Tensor]]:
    """ControlNets of diffusers' and of the authors' names, and the other forms of steering."""
    from ldm.checkpoints.original import CONTROL, controlnet_names
    from ldm.control.controlnet import ControlNet

    config = control_config()
    ours = filled(ControlNet, config, 4)
    theirs = write_original(ours, CONTROL, controlnet_names(config))
    bare = write_original(ours, "", controlnet_names(config))
    lora = {k: v for k, v in bare.items() if "attn1.to_q" not in k}
    for stem in (k.removesuffix(".weight") for k in bare if "attn1.to_q.weight" in k):
        lora |= {f"{stem}.up": torch.ones(8, 2), f"{stem}.down": torch.ones(2, 8)}
    return {"diffusers": ours, "authors": theirs, "Control-LoRA": lora | {
        "lora_controlnet": torch.zeros(1)}}  # fmt: skip


@cache
def lllite() -> dict[str, Tensor]:
    stem = "lllite_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    shapes = {
        "conditioning1.0.weight": (3, 3, 4, 4), "conditioning1.0.bias": (3,),
        "conditioning1.2.weight": (6, 3, 2, 2), "conditioning1.2.bias": (6,),
        "down.0.weight": (2, 8), "down.0.bias": (2,), "mid.0.weight": (2, 8), "mid.0.bias": (2,),
        "up.0.weight": (8, 2), "up.0.bias": (8,),
    }  # fmt: skip
    return {f"{stem}.{name}": torch.ones(shape) for name, shape in shapes.items()}


@cache
def t2i_adapters() -> dict[str, dict[str, Tensor]]:
    from ldm.control.t2i_adapter import T2IAdapter

    ours = filled(T2IAdapter, T2IAdapterConfig(3, (8, 8), 1, 8))
    light = filled(T2IAdapter, T2IAdapterConfig(3, (8,), 2, 8, "light_adapter"))
    bare = {k.removeprefix("adapter."): v for k, v in ours.items()}
    return {"full": ours, "bare": bare, "light": light}


@cache
def ip_adapters() -> dict[str, dict[str, Tensor]]:
    from ldm.control.ip_adapter import IPAdapter

    kinds: dict[str, dict[str, Any]] = {
        "base": {"kind": "base", "image_width": 6, "num_tokens": 2},
        "full": {"kind": "full", "image_width": 6},
        "plus": {"kind": "plus", "image_width": 6, "num_tokens": 2, "hidden_size": 8,
                 "num_heads": 1, "num_layers": 1},
    }  # fmt: skip
    unet = family().unet
    return {
        name: filled(IPAdapter, IPAdapterConfig.like(unet, **own)) for name, own in kinds.items()
    }


@cache
def image_encoder() -> dict[str, Tensor]:
    from ldm.clip_vision import CLIPVisionEncoder

    return filled(CLIPVisionEncoder, CLIPVisionConfig(
        hidden_size=12, intermediate_size=4, projection_dim=6, num_hidden_layers=1,
        num_attention_heads=3, image_size=4, patch_size=2))  # fmt: skip


def lora(ends: Mapping[str, tuple[int, ...]], stem: str) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(len(stem))
    return {f"{stem}.{end}": torch.rand(shape, generator=rng) * 0.1 for end, shape in ends.items()}


@cache
def loras() -> dict[str, dict[str, Tensor]]:
    """LoRAs of all kinds, each for one linear layer or one convolution."""
    block = "mid_block_attentions_0_transformer_blocks_0"
    q, k = f"lora_unet_{block}_attn1_to_q", f"lora_unet_{block}_attn2_to_k"
    conv = "lora_unet_mid_block_resnets_0_conv1"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    pair = {"lora_down.weight": (2, 8), "lora_up.weight": (8, 2), "alpha": ()}
    kinds = {
        "LoRA": lora(pair, q) | lora(pair, text) | lora(pair | {"dora_scale": (8, 1)}, k),
        "LoCon": lora({"lora_down.weight": (2, 8, 1, 1), "lora_mid.weight": (2, 2, 3, 3),
                       "lora_up.weight": (8, 2, 1, 1)}, conv),
        "LoHa": lora(dict.fromkeys(("hada_w1_a", "hada_w2_a"), (8, 2))
                     | dict.fromkeys(("hada_w1_b", "hada_w2_b"), (2, 8)) | {"alpha": ()}, q),
        "LoKr": lora({"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)}, q),
        "GLoRA": lora({"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (8, 2),
                       "b2.weight": (2, 8)}, q),
        "OFT": lora({"oft_blocks": (2, 4, 4), "alpha": (), "rescale": (8, 1)}, q),
        "peft OFT": lora({"oft_R.weight": (2, 6)},
                         "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
        "BOFT": lora({"boft_R": (1, 2, 4, 4), "boft_s": (8, 1)}, q),
        "IA3": lora({"weight": (8, 1), "on_input": ()}, q),
        "difference": lora({"diff": (8, 8)}, q) | lora({"diff_b": (8,)}, conv),
        "words": lora(pair, q) | {"bundle_emb.cat.clip_l": torch.ones(2, WIDTH)},
        "first": {f"unet:{i}:{way}": torch.ones(*shape) for i in range(32)
                  for way, shape in (("up", (8, 2)), ("down", (2, 8)))},
    }  # fmt: skip
    kinds["IA3"][f"{q}.on_input"] = torch.tensor(False)
    return kinds


@cache
def taesd() -> dict[str, Tensor]:
    from ldm.config import TAESDConfig
    from ldm.taesd import AutoencoderTiny

    module = empty(AutoencoderTiny, TAESDConfig())
    return {
        name: torch.zeros(value.shape, dtype=torch.float8_e5m2)
        for name, value in module.state_dict().items()
        if name.startswith("decoder.layers.")
    }
