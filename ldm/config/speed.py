"""Where the faster ways of ``ldm.fast`` are the default."""

from __future__ import annotations

OPTIMIZED = ("cpu", "cuda")  # types of devices on which ``ldm generate`` and the server optimize


def is_optimized(device: str, chosen: bool | None) -> bool:
    """Whether a model on a type of device is optimized: as chosen, else (None) as is usual."""
    return device in OPTIMIZED if chosen is None else chosen
