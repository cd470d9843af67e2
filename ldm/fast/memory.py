"""How much memory there is, and whether the VAE's decoder fits into it."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.fast.graphs import forget_recordings, held_by_recordings
from ldm.fast.strips import widest
from ldm.memory import system
from ldm.memory.networks import AT_ONCE
from ldm.vae import AutoencoderKL


def decode_needs_strips(vae: AutoencoderKL, z: Tensor, device: torch.device) -> bool:
    """Whether decoding the latents z one by one would take more memory than a device has.

    Recorded steps give theirs up first: to record them again takes less time than strips do.
    """
    needed = AT_ONCE * widest(vae, z)

    def short() -> bool:
        available = available_memory(device)
        return available is not None and needed > available

    return short() and not (forget_recordings(device) and not short())


def available_memory(device: torch.device) -> int | None:
    """Count the bytes that may still be taken on a device; None if that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(0, free + cached - held_by_recordings(device))
    if device.type != "cpu":
        return None
    return system.available_memory()
