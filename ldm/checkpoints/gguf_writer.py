"""Writing of GGUF files, with the package ``gguf``: tensor by tensor."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.checkpoints.gguf_blocks import BLOCKS, INSTALL
from ldm.checkpoints.number_formats import check_range, gguf_format
from ldm.errors import CheckpointError
from ldm.writing import whole_file

FLOATS = {"F32": torch.float32, "F16": torch.float16}


def write_gguf(
    tensors: Mapping[str, Tensor],
    path: Path,
    kind: torch.dtype | str,
    architecture: str,
    metadata: Mapping[str, str],
) -> None:
    """Write tensors in a format of ``number_formats``, whole or not at all.

    Raises CheckpointError without the package, and for values that are not finite in the format;
    OSError, such as for a full disk.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError:
        raise CheckpointError(
            f"{path} is to be a GGUF file, for which the package gguf is needed: {INSTALL}"
        ) from None
    with whole_file(path) as new, contextlib.closing(GGUFWriter(new, architecture)) as writer:
        for key, text in metadata.items():
            writer.add_string(key, text)
        types = {name: gguf_format(name, value, kind) for name, value in tensors.items()}
        for name, value in tensors.items():
            values, size = BLOCKS[types[name]]
            shape = (*value.shape[:-1], value.shape[-1] // values * size)  # in bytes
            writer.add_tensor_info(
                name,
                shape,
                np.dtype(np.uint8),
                value.numel() // values * size,
                GGMLQuantizationType[types[name]],
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, value in tensors.items():
            writer.write_tensor_data(encode(name, value, types[name]))


def encode(name: str, value: Tensor, kind: str) -> np.ndarray:
    """Return the bytes of a tensor in a type of GGUF.

    Raises CheckpointError for values that are not finite in it.
    """
    from gguf import GGMLQuantizationType, quants

    value = value.detach().to("cpu", FLOATS.get(kind, torch.float32)).contiguous()
    check_range(name, value, kind)
    block_type = GGMLQuantizationType[kind]
    return np.ascontiguousarray(quants.quantize(value.numpy(), block_type)).view(np.uint8)
