"""Files of IP-Adapters and of image encoders: published layouts, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoints.family import read_family
from ldm.checkpoints.folder import empty
from ldm.config import CLIPVisionConfig, IPAdapterConfig, UNetConfig
from ldm.config.ip_adapter import cross_attention_widths
from ldm.control.ip_adapter import IPAdapter, transformer_blocks
from ldm.errors import CheckpointError
from ldm.loading.image_encoder import config_of as encoder_config
from ldm.loading.image_encoder import load_image_encoder
from ldm.loading.ip_adapter import config_of, load_ip_adapter, save_ip_adapter
from ldm.unet import UNet
from tests.helpers.ip_adapters import KINDS, adapter_tensors, image_encoder, save_adapter

diffusers = pytest.importorskip("diffusers")
CPU = torch.device("cpu")
Shapes = dict[str, tuple[int, ...]]
UNETS = {
    "sd": UNetConfig.from_dict(
        {
            "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 4,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": 4, "cross_attention_dim": 12,
        }
    ),
}  # fmt: skip


def keys(widths: list[int], context: int) -> Shapes:
    return {
        f"ip_adapter.{2 * i + 1}.{name}.weight": (width, context)
        for i, width in enumerate(widths)
        for name in ("to_k_ip", "to_v_ip")
    }


# In the order of diffusers' attention processors: down, up, middle.
SD15 = keys([320, 320, 640, 640, *[1280] * 5, *[640] * 3, *[320] * 3, 1280], 768)
XL = keys([*[640] * 4, *[1280] * 20, *[1280] * 30, *[640] * 6, *[1280] * 10], 2048)


def base(width: int, context: int) -> Shapes:
    return {
        "image_proj.proj.weight": (4 * context, width), "image_proj.proj.bias": (4 * context,),
        "image_proj.norm.weight": (context,), "image_proj.norm.bias": (context,),
    }  # fmt: skip


def plus(dim: int, heads: int, context: int, width: int = 1280) -> Shapes:
    found: Shapes = {
        "latents": (1, 16, dim), "proj_in.weight": (dim, width), "proj_in.bias": (dim,),
        "proj_out.weight": (context, dim), "proj_out.bias": (context,),
        "norm_out.weight": (context,), "norm_out.bias": (context,),
    }  # fmt: skip
    for i in range(4):
        found |= {
            f"layers.{i}.0.{n}.{w}": (dim,) for n in ("norm1", "norm2") for w in ("weight", "bias")
        }
        found |= {
            f"layers.{i}.0.to_q.weight": (64 * heads, dim),
            f"layers.{i}.0.to_kv.weight": (128 * heads, dim),
            f"layers.{i}.0.to_out.weight": (dim, 64 * heads),
            f"layers.{i}.1.0.weight": (dim,), f"layers.{i}.1.0.bias": (dim,),
            f"layers.{i}.1.1.weight": (4 * dim, dim), f"layers.{i}.1.3.weight": (dim, 4 * dim),
        }  # fmt: skip
    return {f"image_proj.{name}": shape for name, shape in found.items()}


def full(width: int, context: int) -> Shapes:
    return {
        "image_proj.proj.0.weight": (width, width), "image_proj.proj.0.bias": (width,),
        "image_proj.proj.2.weight": (context, width), "image_proj.proj.2.bias": (context,),
        "image_proj.proj.3.weight": (context,), "image_proj.proj.3.bias": (context,),
    }  # fmt: skip


# As published in h94/IP-Adapter; ip-adapter_sd15_light has the layout of ip-adapter_sd15.
PUBLISHED: dict[str, tuple[str, Shapes, str]] = {
    "ip-adapter_sd15": ("sd1", SD15 | base(1024, 768), "base"),
    "ip-adapter_sd15_vit-G": ("sd1", SD15 | base(1280, 768), "base"),
    "ip-adapter-plus_sd15": ("sd1", SD15 | plus(768, 12, 768), "plus"),
    "ip-adapter-full-face_sd15": ("sd1", SD15 | full(1280, 768), "full"),
    "ip-adapter_sdxl": ("sdxl", XL | base(1280, 2048), "base"),
    "ip-adapter_sdxl_vit-h": ("sdxl", XL | base(1024, 2048), "base"),
    "ip-adapter-plus_sdxl_vit-h": ("sdxl", XL | plus(1280, 20, 2048), "plus"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts(name: str) -> None:
    """Nothing is missing, nothing is left over, and the layers are diffusers'."""
    family, shapes, kind = PUBLISHED[name]
    config = config_of(Path(name), shapes)
    assert config.kind == kind
    module = empty(IPAdapter, config)
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == shapes
    unet = read_family(family).unet
    assert config.layer_widths == cross_attention_widths(unet)
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(unet.to_dict())
    names = [n for n in theirs.attn_processors if n.endswith("attn2.processor")]
    ours = empty(UNet, unet)
    known = {id(module): key for key, module in ours.named_modules()}
    assert [f"{known[id(b)]}.attn2.processor" for b in transformer_blocks(ours)] == names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["bin", "safetensors"])
def test_read_and_written(tmp_path: Path, kind: str, end: str) -> None:
    tensors = adapter_tensors(UNETS["sd"], kind)
    file = save_adapter(tmp_path / f"a.{end}", tensors)
    module = load_ip_adapter(file, UNETS["sd"], None, CPU)
    save_ip_adapter(module, tmp_path / "again.safetensors")
    again = load_ip_adapter(tmp_path / "again.safetensors", UNETS["sd"], None, CPU)
    assert again.config == module.config == IPAdapterConfig.like(UNETS["sd"], **KINDS[kind]) or (
        kind == "full"  # whose number of tokens is that of the patches
    )
    assert again.state_dict().keys() == tensors.keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in tensors.items())


def small(**changes: Any) -> dict[str, torch.Tensor]:
    return {**adapter_tensors(UNETS["sd"], "base"), **changes}


def shaped(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


FACE = "FaceID, which needs a face recogniser"
BAD: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "FaceID": (
        small(**{"ip_adapter.1.to_k_lora.down.weight": torch.zeros(2, 12)}), FACE,
    ),
    "FaceID with numbers before": (
        shaped({"image_proj.norm.weight": (4,), "ip_adapter.0.to_q_lora.up.weight": (2, 2)}), FACE,
    ),
    "FaceID-plus": (
        shaped({"image_proj.perceiver_resampler.proj_in.weight": (4, 4), **keys([16], 12)}), FACE,
    ),
    "FaceID's projection": (
        shaped({"image_proj.norm.weight": (4,), "image_proj.proj.0.weight": (4, 4)}), FACE,
    ),
    "InstantID": (
        shaped({"image_proj.latents": (1, 16, 64), "image_proj.proj_in.weight": (64, 512),
                **keys([16] * 4, 12)}),
        "InstantID's or an IP-Adapter FaceID",
    ),
    "another family": (
        shaped(keys([16] * 4, 2048) | base(4, 2048)),
        "is an IP-Adapter for Stable Diffusion XL; this model is a model that reads texts of width",
    ),
    "another U-Net": (
        shaped(keys([16] * 70, 12) | base(4, 12)),
        "for 70 cross-attentions of widths 16; this model's U-Net has 4 of 16, 32",
    ),
    "layers are missing": (
        {k: v for k, v in small().items() if not k.startswith("ip_adapter.3.")},
        "numbered",
    ),
    "a tensor is missing": (
        {k: v for k, v in small().items() if k != "image_proj.norm.bias"}, "lacks image_proj.norm",
    ),
    "another projection": (
        {k: v for k, v in small().items() if not k.startswith("image_proj.")},
        "makes tokens of pictures by nothing, which is not known",
    ),
    "Flux": (shaped({"ip_adapter.0.x": (2,)}), "an IP-Adapter of another architecture"),
    "a model": (
        shaped({"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3)}),
        "is a model, not an IP-Adapter; give it as the model: --model FILE",
    ),
    "a ControlNet": (
        shaped({"controlnet_down_blocks.0.weight": (4, 4, 1, 1)}), "--controlnet FILE",
    ),
    "a LoRA": (
        shaped({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8),
                "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": (8, 4)}),
        "--lora FILE",
    ),
    "an encoder": (
        shaped({"vision_model.embeddings.class_embedding": (4,),
                "visual_projection.weight": (4, 4)}),
        "is a CLIP image encoder, not an IP-Adapter; give it as --image-encoder FILE",
    ),
    "something else": (
        shaped({"a.weight": (2, 2), "b.weight": (2, 2), "c": (1, 1, 1)}),
        "is not an IP-Adapter: it holds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_refused(name: str, tmp_path: Path) -> None:
    tensors, message = BAD[name]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_ip_adapter(tmp_path / "x.safetensors", UNETS["sd"], None, CPU)


def test_files_that_are_broken(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"image_proj": [1], "ip_adapter": {}}, path)
    with pytest.raises(CheckpointError, match="does not hold a plain mapping"):
        load_ip_adapter(path, UNETS["sd"], None, CPU)
    path.write_bytes(b"PK no pickle")
    with pytest.raises(CheckpointError, match=r"x\.bin"):
        load_ip_adapter(path, UNETS["sd"], None, CPU)
    with pytest.raises(CheckpointError, match="does not exist; give an IP-Adapter's file"):
        load_ip_adapter(tmp_path / "y.bin", UNETS["sd"], None, CPU)


# Encoders


def encoder_of(path: Path, kind: str = "base") -> Any:
    return load_image_encoder(path, IPAdapterConfig.like(UNETS["sd"], **KINDS[kind]), None, CPU)


def test_encoders_of_folders_and_files(tmp_path: Path) -> None:
    theirs = image_encoder(tmp_path / "models" / "image_encoder")
    pixels = torch.randn(1, 3, 32, 32)
    want = theirs(pixels).image_embeds
    file = tmp_path / "models" / "image_encoder" / "model.safetensors"
    for path in (tmp_path / "models", tmp_path / "models" / "image_encoder", file):
        assert (encoder_of(path)(pixels).image_embeds - want).abs().max() <= 1e-5
    old = theirs.state_dict() | {
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        "text_model.final_layer_norm.weight": torch.zeros(4),
        "logit_scale": torch.zeros(()),
    }
    save_file({k: v.contiguous() for k, v in old.items()}, file)  # of a whole CLIP
    assert (encoder_of(file)(pixels).image_embeds - want).abs().max() <= 1e-5


@pytest.mark.parametrize(("width", "heads"), [(1024, 16), (1280, 16), (1664, 16)])
def test_encoders_alone_are_known_by_their_shapes(width: int, heads: int) -> None:
    from ldm.clip_vision import CLIPVisionEncoder

    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads,
        num_hidden_layers=3, patch_size=14, projection_dim=20,
        hidden_act="quick_gelu" if width == 1024 else "gelu",
    )  # fmt: skip
    tensors = empty(CLIPVisionEncoder, config).state_dict()
    assert encoder_config(Path("x"), tensors) == config


def test_encoders_that_are_refused(tmp_path: Path) -> None:
    image_encoder(tmp_path / "narrow", projection_dim=16, hidden_size=36)
    for kind, message in (
        ("base", "with embeddings of width 16; the IP-Adapter reads 20"),
        ("plus", "with states of width 36; the IP-Adapter reads 24"),
    ):
        with pytest.raises(CheckpointError, match=message):
            encoder_of(tmp_path / "narrow", kind)
    file = tmp_path / "x.safetensors"
    for tensors, message in (
        (small(), "is an IP-Adapter, not a CLIP image encoder"),
        (shaped({"vision_model.embeddings.class_embedding": (4,)}), "has no visual_projection"),
        (shaped({"visual.class_embedding": (4,), "visual.proj": (4, 4)}), "with other names than"),
        (
            {k: v for k, v in image_encoder(tmp_path / "e").state_dict().items()},
            "of width 24, which is none of those known by their shapes; give its folder",
        ),
    ):
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=message):
            encoder_of(file)
    with pytest.raises(CheckpointError, match="does not exist; give an image encoder"):
        encoder_of(tmp_path / "nowhere")
