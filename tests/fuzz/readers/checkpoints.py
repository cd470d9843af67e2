"""Readers of weights."""

from __future__ import annotations

import torch
from safetensors.torch import save

from ldm.checkpoints.header import read_header
from tests.fuzz.reader import Reader


def safetensors_files() -> list[bytes]:
    """Return small files of several number formats."""
    tensors = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}
    return [save(tensors), save(tensors, {"format": "pt", "note": "x"})]


CHECKPOINTS = [
    Reader("safetensors header", safetensors_files, read_header, "case.safetensors"),
]
