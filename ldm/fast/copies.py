"""Copies from the GPU that do not hold up what it computes next."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def to_cpu(parts: Iterable[Tensor]) -> Tensor:
    """Join tensors (1, …) to (B, …), float32, in the CPU's memory.

    From CUDA each is copied into pinned memory while ``parts`` computes the next one; the CPU waits
    once, at the end. Elsewhere they are joined.
    """
    copies: list[Tensor] = []
    last: torch.device | None = None
    for part in parts:
        part = part.float()
        if part.device.type != "cuda":
            copies.append(part.cpu())
            continue
        copy = torch.empty_like(part, device="cpu", pin_memory=True)
        copies.append(copy.copy_(part, non_blocking=True))
        last = part.device
    if last is not None:
        torch.cuda.current_stream(last).synchronize()
    return torch.cat(copies)
