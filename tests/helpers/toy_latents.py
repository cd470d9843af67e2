"""A tiny latent recipe: a VAE of factor 4, a text encoder and a U-Net that take no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoints.folder import save_component
from ldm.clip import CLIPTextEncoder
from ldm.config import CLIPTextConfig, VAEConfig
from ldm.training.config import TrainConfig
from ldm.training.recipes.latent import LatentRecipe
from ldm.vae import AutoencoderKL


def save_parts(folder: Path) -> Path:
    """Save the VAE and the text encoder."""
    torch.manual_seed(0)
    vae = VAEConfig(
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    save_component(AutoencoderKL(vae), folder / "vae")
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 1}
    save_component(CLIPTextEncoder(CLIPTextConfig.from_dict(text)), folder / "text_encoder")
    return folder


def build(
    parts: Path, source: Path, output: Path, batch_size: int = 8, **options: Any
) -> LatentRecipe:
    """Build the recipe with the saved parts."""
    model = {"sample_size": 8, "block_out_channels": [8, 16], "norm_num_groups": 4}
    model |= {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}
    model |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
    model |= {"attention_head_dim": 2, "layers_per_block": 1, "cross_attention_dim": 16}
    own = {
        "vae": str(parts / "vae"),
        "text_encoder": str(parts / "text_encoder"),
        "caption_dropout": 0.25,
        "scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        "defaults": {"num_inference_steps": 1},
        "prompts": ["a"],
    }
    config = TrainConfig("latent", str(source), str(output), 5, batch_size, 1e-3, model=model)
    return LatentRecipe(replace(config, options=own | options))
