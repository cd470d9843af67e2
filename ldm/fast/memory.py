"""How much memory there is, and whether the VAE's decoder fits into it."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.fast.strips import widest
from ldm.memory import system
from ldm.memory.networks import AT_ONCE
from ldm.vae import AutoencoderKL


def decode_needs_strips(vae: AutoencoderKL, z: Tensor) -> bool:
    """Whether decoding the latents z one by one would take more memory than there is."""
    available = available_memory(next(vae.parameters()).device)
    return available is not None and AT_ONCE * widest(vae, z) > available


def available_memory(device: torch.device) -> int | None:
    """Count the bytes that may still be taken on a device; None if that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    if device.type != "cpu":
        return None
    return system.available_memory()
