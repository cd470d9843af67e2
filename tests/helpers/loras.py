"""A LoRA of one layer, for tests that ask only whether it is put on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ldm.unet import UNet

BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"


def save_lora_of_ones(unet: UNet, folder: Path) -> Path:
    """Write a LoRA of rank 2 that adds 2 to each weight of a layer, in peft's names."""
    rows, columns = unet.get_submodule(BLOCK).weight.shape
    factors = {"lora_A": torch.ones(2, columns), "lora_B": torch.ones(rows, 2)}
    path = folder / "lora.safetensors"
    save_file({f"unet.{BLOCK}.{name}.weight": value for name, value in factors.items()}, path)
    return path
