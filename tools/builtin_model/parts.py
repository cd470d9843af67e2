"""A network's folder whose weights lie in parts, as diffusers shards large models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import nn

from ldm.checkpoints.tensors import to_save, write_tensors
from ldm.config import write_json

PART = 15 * 10**6  # bytes


def save_in_parts(module: nn.Module, folder: Path, dtype: torch.dtype, part: int = PART) -> None:
    """Write `config.json` and safetensors of at most `part` bytes each, with their index.

    The folder appears whole, in place of an earlier one. Raises CheckpointError for values that
    are not finite and OSError where the disk is full.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    groups: list[dict[str, torch.Tensor]] = [{}]
    room = part - 64 * 1024  # the file's header has names and shapes
    for name, value in to_save(module.state_dict(), dtype).items():
        if groups[-1] and sum(v.nbytes for v in groups[-1].values()) + value.nbytes > room:
            groups.append({})
        groups[-1][name] = value
    index = {}
    for number, group in enumerate(groups, 1):
        file = f"{module.weight_stem}-{number:05d}-of-{len(groups):05d}.safetensors"
        write_tensors(group, partial / file)
        index |= dict.fromkeys(group, file)
    size = sum(value.nbytes for group in groups for value in group.values())
    listing = {"metadata": {"total_size": size}, "weight_map": index}
    text = json.dumps(listing, indent=2) + "\n"
    (partial / f"{module.weight_stem}.safetensors.index.json").write_text(text)
    write_json(partial / "config.json", module.config.to_dict())
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
