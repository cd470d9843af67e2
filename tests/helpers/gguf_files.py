"""GGUF files as other programs write them, by the package gguf."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

gguf = pytest.importorskip("gguf")
Type = gguf.GGMLQuantizationType
Blocks = tuple[np.ndarray, str]  # values or bytes of blocks, and their type
FOLDED = "comfy.gguf.orig_shape."


def write(
    path: Path,
    blocks: Mapping[str, Blocks],
    architecture: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """Write tensors; stable-diffusion.cpp names no architecture, and has no metadata at all."""
    writer = gguf.GGUFWriter(path, architecture or "none")
    if architecture is None:
        writer.kv_data[0].clear()
    for name, shape in (shapes or {}).items():
        writer.add_array(FOLDED + name, shape)
    for name, (data, kind) in blocks.items():
        writer.add_tensor(name, data, raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantise(value: Tensor, kind: str) -> Blocks:
    return gguf.quants.quantize(value.detach().float().numpy(), Type[kind]), kind


def values(blocks: Blocks) -> Tensor:
    """What the package computes from blocks."""
    data, kind = blocks
    return torch.from_numpy(np.array(gguf.quants.dequantize(data, Type[kind])))


def as_stable_diffusion_cpp(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Blocks]:
    """Quantise as its converter does: ``ModelLoader::tensor_should_be_converted``.

    Vectors are quantised, too, if they are as long as blocks, and first axes of one are left out.
    """
    result = {}
    for name, value in tensors.items():
        if name in ("v_pred", "ztsnr"):
            continue
        shape = value.shape
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        kept = name.endswith(".bias") or any(
            word in name for word in ("time_embed.", "label_emb.", "embedding")
        )
        block = gguf.GGML_QUANT_SIZES[Type[kind]][0]
        own = "F32" if kept or shape[-1] % block else kind
        result[name] = quantise(value.reshape(shape), own)
    return result
