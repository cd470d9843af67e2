"""Small random T2I-Adapters of diffusers', small models of three levels for them, pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.families import sd, sdxl, unet, xl_unet
from tests.helpers.networks import randomize
from tests.helpers.pictures import quiet

diffusers = pytest.importorskip("diffusers")

WIDTHS = {"block_out_channels": (32, 64, 64)}
LEVELS = {
    "sd": {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 2, 2),
    },
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"channels": [32, 64, 64]},
    "light": {"channels": [32, 64], "num_res_blocks": 3, "adapter_type": "light_adapter"},
    "grey": {"channels": [32, 64, 64], "in_channels": 1},
    # The fourth is added to the middle.
    "xl": {"channels": [32, 64, 64, 64], "downscale_factor": 16, "adapter_type": "full_adapter_xl"},
}


def base_of(family: str, **changes: Any) -> Any:
    """diffusers' pipeline of a small Stable Diffusion, or XL, of three levels."""
    make, network = (sdxl, xl_unet) if family == "sdxl" else (sd, unet)
    return make(unet=network(**WIDTHS, **LEVELS[family], **changes))


def adapter(kind: str, seed: int = 0, **changes: Any) -> Any:
    """diffusers' T2I-Adapter for it."""
    return randomize(diffusers.T2IAdapter(**(ADAPTERS[kind] | changes)), 200 + seed)


def saved(base: Any, adapters: list[Any], folder: Path) -> tuple[Path, list[Path]]:
    """Write a base and its adapters; return where."""
    base.save_pretrained(folder / "base")
    paths = [folder / f"adapter{i}" for i in range(len(adapters))]
    for each, path in zip(adapters, paths, strict=True):
        each.save_pretrained(path)
    return folder / "base", paths


def adapter_pipeline(base: Any, adapters: list[Any]) -> Any:
    """diffusers' pipeline of a base with one or several adapters."""
    parts = dict(base.components)
    if "XL" in type(base).__name__:
        parts |= {"feature_extractor": None, "image_encoder": None}
        cls = diffusers.StableDiffusionXLAdapterPipeline
        options: dict[str, Any] = {}
        options["force_zeros_for_empty_prompt"] = base.config.force_zeros_for_empty_prompt
    else:
        parts.pop("image_encoder", None)
        cls, options = diffusers.StableDiffusionAdapterPipeline, {"requires_safety_checker": False}
    one = adapters[0] if len(adapters) == 1 else diffusers.MultiAdapter(adapters)
    return quiet(cls(**parts, adapter=one, **options))


def noisy(seed: int, size: tuple[int, int] = (80, 48), mode: str = "RGB") -> Image.Image:
    """A picture of noise of (width, height)."""
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8))
