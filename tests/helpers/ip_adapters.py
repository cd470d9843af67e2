"""Small random IP-Adapters as the authors write them, and diffusers' pipelines that have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.config import IPAdapterConfig, UNetConfig
from ldm.control.ip_adapter import IPAdapter
from tests.helpers.networks import randomize
from tests.helpers.pictures import quiet

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

VISION: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "projection_dim": 20, "num_hidden_layers": 3,
    "num_attention_heads": 3, "image_size": 32, "patch_size": 8, "hidden_act": "gelu",
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "base": {"kind": "base", "image_width": 20, "num_tokens": 4},
    "plus": {
        "kind": "plus", "image_width": 24, "num_tokens": 6, "hidden_size": 40, "num_heads": 1,
        "num_layers": 4,
    },
    "full": {"kind": "full", "image_width": 24},
}  # fmt: skip


def image_encoder(folder: Path, seed: int = 50, **changes: Any) -> Any:
    """Save a random encoder; return transformers' module."""
    config = transformers.CLIPVisionConfig(**VISION | changes)
    made = randomize(transformers.CLIPVisionModelWithProjection(config), seed)
    made.save_pretrained(folder)
    return made


def adapter_tensors(
    unet: UNetConfig, kind: str, seed: int = 60, **changes: Any
) -> dict[str, Tensor]:
    """Random tensors of an adapter for a U-Net, under the authors' names."""
    made = IPAdapter(IPAdapterConfig.like(unet, **KINDS[kind] | changes))
    return {name: value.clone() for name, value in randomize(made, seed).state_dict().items()}


def save_adapter(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Write a file as the authors do: a pickle of two tables, or safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
        return path
    tables: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in tensors.items():
        table, _, key = name.partition(".")
        tables[table][key] = value
    torch.save(tables, path)
    return path


def with_encoder(pipe: Any, encoder: Any, cls: Any = None) -> Any:
    """diffusers' pipeline of the same parts, with an image encoder; cls None: of their class."""
    size = encoder.config.image_size
    parts = {
        **pipe.components,
        "image_encoder": encoder,
        "feature_extractor": transformers.CLIPImageProcessorPil(size=size, crop_size=size),
    }
    if "XL" in type(pipe).__name__:
        options: dict[str, Any] = {"add_watermarker": False}
        options["force_zeros_for_empty_prompt"] = pipe.config.force_zeros_for_empty_prompt
    else:
        parts["safety_checker"] = None
        options = {"requires_safety_checker": False}
    return quiet((cls or type(pipe))(**parts, **options))


def load_theirs(pipe: Any, files: list[Path]) -> None:
    """Load adapters into diffusers' pipeline, whose encoder is there."""
    pipe.load_ip_adapter(
        [str(file.parent) for file in files],
        subfolder="",
        weight_name=[file.name for file in files],
        image_encoder_folder=None,
    )
