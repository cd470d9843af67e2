"""How much memory there is, and whether the VAE's decoder fits into it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldm.fast.strips import widest
from ldm.vae import AutoencoderKL

AT_ONCE = 5  # layers' values that a decode holds at its peak: measured 4.3 on the CPU
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def decode_needs_strips(vae: AutoencoderKL, z: Tensor) -> bool:
    """Whether decoding the latents z one by one would take more memory than there is."""
    available = available_memory(next(vae.parameters()).device)
    return available is not None and AT_ONCE * widest(vae, z) > available


def available_memory(device: torch.device) -> int | None:
    """Count the bytes that may still be taken on a device; None if that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = []
    if MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        limits.append(1024 * int(lines["MemAvailable"].split()[0]))
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        limits.append(int(most) - int(used.read_text()))
    return min(limits, default=None)
