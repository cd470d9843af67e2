"""LoRAs on the command line: ``--lora FILE[:SCALE]`` and ``<lora:name:0.8>`` in prompts."""

from __future__ import annotations

import math
import re
from pathlib import Path

from ldm.errors import ArgumentError

TAG = re.compile(r"<lora:([^:>]+)(?::([^:>]*))?>")
ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin")

LoraUse = tuple[Path, float]  # file, scale


def lora_option(text: str) -> LoraUse:
    """Read ``FILE`` or ``FILE:SCALE``. Raises ArgumentError for a scale that is no number."""
    file, colon, scale = text.rpartition(":")
    if not colon or "/" in scale or "\\" in scale or Path(text).is_file():
        return Path(text), 1.0
    return Path(file), read_scale(scale, text)


def read_scale(text: str, where: str) -> float:
    """Read a scale. Raises ArgumentError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentError(f"the scale of {where!r} is {text!r}; it must be a number, such as 0.8")
    return value


def split_tags(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """Split a prompt into its text and its ``<lora:name:scale>``; a missing scale is 1."""
    found = [
        (match[1].strip(), 1.0 if match[2] is None else read_scale(match[2], match[0]))
        for match in TAG.finditer(prompt)
    ]
    return (re.sub(r" {2,}", " ", TAG.sub("", prompt)).strip() if found else prompt), found


def find_lora(name: str, folder: Path) -> Path:
    """Find the file that a tag names, in ``folder`` or below it. Raises ArgumentError for none."""
    known = sorted(path for path in folder.rglob("*") if path.suffix in ENDINGS)
    for path in known:
        if path.stem == name or path.name == name:
            return path
    shown = ", ".join(path.stem for path in known[:5]) or "none"
    raise ArgumentError(
        f"<lora:{name}>: {folder} has no such file (there are: {shown}); choose another --lora-dir"
    )
