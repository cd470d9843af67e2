"""A U-Net's folder whose weights lie in parts, as diffusers shards large models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.tensors import to_save, write_tensors
from ldm.config import write_json
from ldm.unet import UNet

PART = 15 * 10**6  # bytes
HEADER = 64 * 1024  # bytes of a file's header, with names and shapes, at most


def save_in_parts(unet: UNet, folder: Path, dtype: torch.dtype, part: int = PART) -> None:
    """Write `config.json` and safetensors of at most `part` bytes each, with their index.

    The folder appears whole, in place of an earlier one. Raises CheckpointError for values that
    are not finite and OSError where the disk is full.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = to_save(unet.state_dict(), dtype)
    groups = split_tensors(tensors, part - HEADER)
    file_of: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = f"{unet.weight_stem}-{number:05d}-of-{len(groups):05d}.safetensors"
        write_tensors({name: tensors[name] for name in names}, partial / file)
        file_of |= dict.fromkeys(names, file)
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": file_of}
    write_json(partial / f"{unet.weight_stem}.safetensors.index.json", index)
    write_json(partial / "config.json", unet.config.to_dict())
    put_in_place(partial, folder)


def split_tensors(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Group the names of tensors, in order, into groups of at most `limit` bytes.

    A tensor beyond the limit has a group of its own.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, value in tensors.items():
        if groups[-1] and filled + value.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += value.nbytes
    return groups


def put_in_place(new: Path, folder: Path) -> None:
    """Rename a folder to `folder`, in place of an earlier one, which is deleted."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
