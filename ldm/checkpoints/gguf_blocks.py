"""The tensors of a GGUF file, which are read and computed from their blocks one by one.

Blocks are computed by the package ``gguf``, the reference of the format; it is an extra of this
package (``ldm[gguf]``), and files that hold no blocks, only plain numbers, do not need it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.checkpoints.deferred import Deferred
from ldm.checkpoints.gguf_header import BLOCK_TYPES, GGUFHeader, Place
from ldm.errors import CheckpointError

PLAIN = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
BLOCKS = {name: (values, size) for name, values, size in BLOCK_TYPES.values()}
CHUNK = 1 << 20  # values that are computed at once: the formulas need several times their memory
INSTALL = "pip install 'ldm[gguf]', or pip install -U gguf"
Unpack = Callable[["np.ndarray"], "np.ndarray"]


def defer_tensors(path: Path, header: GGUFHeader) -> dict[str, Deferred]:
    """Return the tensors of a file; each is read from it when it is used.

    Raises CheckpointError for block types that the installed package cannot compute.
    """
    unpackers = {
        kind: find_unpacker(path, kind)
        for kind in {info.dtype for info in header.tensors.values()} - set(PLAIN)
    }

    def defer(name: str) -> Deferred:
        info = header.tensors[name]
        shape, place = torch.Size(info.shape), header.places[name]
        if info.dtype in PLAIN:
            dtype = PLAIN[info.dtype]
            return Deferred(shape, dtype, lambda: _plain(path, name, place, dtype).reshape(shape))
        unpack, (values, size) = unpackers[info.dtype], BLOCKS[info.dtype]
        return Deferred(
            shape,
            torch.float32,
            lambda: unpack_blocks(_bytes(path, name, place), values, size, unpack).reshape(shape),
        )

    return {name: defer(name) for name in header.tensors}


def find_unpacker(path: Path, kind: str) -> Unpack:
    """Return the function of the package ``gguf`` for a block type: (1, bytes) → (1, values).

    Raises CheckpointError, naming ``path``, without the package or one that knows the type.
    """
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        raise CheckpointError(
            f"{path} holds blocks of type {kind}, for which the package gguf is needed: {INSTALL}"
        ) from None
    number = next(number for number, (name, *_) in BLOCK_TYPES.items() if name == kind)
    try:
        block_type = GGMLQuantizationType(number)
        with np.errstate(all="ignore"):
            quants.dequantize(np.zeros((1, BLOCKS[kind][1]), np.uint8), block_type)
    except (ValueError, NotImplementedError):
        raise CheckpointError(
            f"{path} holds blocks of type {kind}, which the installed package gguf does not "
            f"compute; try a newer one ({INSTALL}), or get a file of another type, such as Q8_0"
        ) from None
    return lambda blocks: quants.dequantize(blocks, block_type)


def unpack_blocks(raw: np.ndarray, values: int, size: int, unpack: Unpack) -> Tensor:
    """Compute blocks of ``values`` numbers in ``size`` bytes, in float32, in chunks."""
    result = np.empty(len(raw) // size * values, np.float32)
    count = max(1, CHUNK // values)  # blocks of a chunk; one row of them, as the package loops rows
    with np.errstate(all="ignore"):  # NaN and infinite weights are found where they are used
        for i in range(0, len(raw) // size, count):
            chunk = raw[i * size : (i + count) * size].reshape(1, -1)
            result[i * values : (i + count) * values] = unpack(chunk).reshape(-1)
    return torch.from_numpy(result)


def _plain(path: Path, name: str, place: Place, dtype: torch.dtype) -> Tensor:
    if not place.size:  # PyTorch has no view of nothing as another dtype
        return torch.empty(0, dtype=dtype)
    return torch.from_numpy(_bytes(path, name, place)).view(dtype)


def _bytes(path: Path, name: str, place: Place) -> np.ndarray:
    try:
        raw = np.fromfile(path, np.uint8, place.size, offset=place.offset)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    if len(raw) < place.size:
        raise CheckpointError(f"{path} ends inside of {name}; it changed while it was read")
    return raw
