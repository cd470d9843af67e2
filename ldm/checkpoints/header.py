"""The header of a .safetensors file: names, shapes, offsets and metadata, without PyTorch.

Format: https://huggingface.co/docs/safetensors: eight bytes of length, a JSON object, the values.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.checkpoints.plain import refuse_name
from ldm.errors import CheckpointError

MOST_BYTES = 100_000_000  # of a header, as in the safetensors library
MOST_AXES = 64  # of a tensor: PyTorch's own limit
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "C64": 64, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file."""

    dtype: str  # as in the file: "F16", …
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.count * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True)
class Header:
    """What a file states about its tensors and itself."""

    tensors: dict[str, TensorInfo]  # in the order of their offsets
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check a header; the values stay on the disk.

    Raises CheckpointError for a header that is cut off, is no JSON, names a tensor twice, or whose
    tensors do not lie one behind the other up to the end of the file.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            (length,) = struct.unpack("<Q", file.read(8)) if size >= 8 else (None,)
            if length is None or length > min(MOST_BYTES, size - 8):
                raise ValueError("its first eight bytes are no length of a header")
            entries = json.loads(file.read(length), object_pairs_hook=_once)
        if not isinstance(entries, dict):
            raise ValueError("its header is no JSON object")
        metadata = entries.pop("__metadata__", {})
        tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
        places = {name: tuple(entries[name]["data_offsets"]) for name in tensors}
        tensors = dict(sorted(tensors.items(), key=lambda item: places[item[0]]))
        _check_places(places, tensors, size - 8 - length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a .safetensors file ({error}); get it again"
        ) from None
    if not isinstance(metadata, dict):
        metadata = {}
    return Header(tensors, {str(key): str(value) for key, value in metadata.items()})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("its header has a name twice")
    return entries


def _tensor(name: str, entry: object) -> TensorInfo:
    if problem := refuse_name(name):
        raise ValueError(problem)
    if not isinstance(entry, dict):
        raise ValueError(f"{name!r} is no tensor")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"{name!r} has the unknown dtype {_cut(dtype)}")
    shape, place = (_counts(name, entry, key) for key in ("shape", "data_offsets"))
    info = TensorInfo(dtype, tuple(shape))
    if len(place) != 2 or (place[1] - place[0]) * 8 != info.count * DTYPE_BITS[dtype]:
        raise ValueError(f"{name!r} does not have the bytes of its shape {_cut(shape)}")
    return info


def _counts(name: str, entry: dict[str, Any], key: str) -> list[int]:
    value = entry.get(key)
    if (
        not isinstance(value, list)
        or len(value) > MOST_AXES  # else their product would take the square of their number
        or not all(type(v) is int and 0 <= v < 2**63 for v in value)
    ):
        raise ValueError(f"{key} of {name!r} is {_cut(value)}")
    return value


def _cut(value: object) -> str:
    """Write a value of a header for a message."""
    return f"{value!a:.60}"


def _check_places(
    places: dict[str, tuple[int, int]], tensors: dict[str, TensorInfo], size: int
) -> None:
    end = 0
    for name in tensors:
        start, stop = places[name]
        if start != end:
            raise ValueError(f"{name!r} begins at byte {start} instead of {end}")
        end = stop
    if end != size:
        raise ValueError(f"its tensors take {end:,} bytes, but {size:,} follow the header")
