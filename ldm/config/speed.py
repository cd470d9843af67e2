"""Where the faster ways of ``ldm.fast`` are the default, their engines, and what they keep."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.errors import ArgumentError

OPTIMIZED = ("cpu", "cuda")  # types of devices on which ``ldm generate`` and the server optimize
CACHE = "LDM_CACHE"  # the environment variable: a folder for what may be made anew
PYTORCH, OPENVINO = "torch", "openvino"  # what computes the networks

# Arguments of ``Pipeline.optimize`` that keep parts off the GPU, from loading on.
AWAY = ("offload", "int8_weights")


def engine_name(text: str) -> str:
    """Return the name of an engine, which may name a device after a colon; else ArgumentError."""
    name, colon, device = text.partition(":")
    if text == PYTORCH or (name == OPENVINO and bool(colon) == bool(device)):
        return text
    raise ArgumentError(
        f"engine {text!r} is unknown; expected {PYTORCH}, {OPENVINO}, or {OPENVINO}:DEVICE, such "
        f"as {OPENVINO}:GPU"
    )


def is_optimized(device: str, chosen: bool | None) -> bool:
    """Whether a model on a type of device is optimized: as chosen, else (None) as is usual."""
    return device in OPTIMIZED if chosen is None else chosen


def away(ways: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments of ``Pipeline.optimize`` that ``from_pretrained`` has to know."""
    return {name: ways[name] for name in AWAY if ways.get(name)}


def user_cache() -> Path:
    """Return the folder of what may be made anew: ``$XDG_CACHE_HOME/ldm``, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "ldm")
