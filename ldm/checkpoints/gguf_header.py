"""The header of a GGUF file: names, shapes, block types and metadata, without PyTorch.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. "GGUF", a version, the numbers of
tensors and of metadata, both, then the values; in little-endian order.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ldm.checkpoints.header import Header, TensorInfo
from ldm.checkpoints.plain import refuse_name
from ldm.errors import CheckpointError

VERSIONS = (2, 3)
MOST_BYTES = 32_000_000  # of a header; those with the words of large language models have 10
MOST_TENSORS = 200_000
MOST_AXES = 8  # ggml has four
MOST_VALUES = 1 << 60  # of the axes of an empty tensor, which no place in the file bounds
LONGEST_NAME, LONGEST_KEPT = 65_535, 100_000  # bytes of a name, of a text that is kept
DEEPEST = 4  # arrays in arrays
# Number: (name, values in a block, bytes of a block), as in ggml.h.
BLOCK_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
TEXT, ARRAY = 8, 9
# ComfyUI-GGUF's converter folds rows that no block fits into rows of 256, and keeps their shape.
SHAPE_KEY = "comfy.gguf.orig_shape."


class Place(NamedTuple):
    """Where the values of a tensor are in a file."""

    offset: int  # bytes from the start of the file
    size: int  # bytes


@dataclass(frozen=True)
class GGUFHeader(Header):
    """The header of a GGUF file, with the places of its tensors."""

    places: dict[str, Place]


class Reader:
    """Read values from a header, and no more than ``MOST_BYTES`` of it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        """Read from the start of a file of ``size`` bytes."""
        self.file, self.left, self.read = file, min(size, MOST_BYTES), 0

    def take(self, count: int) -> bytes:
        """Return the next bytes. Raises ValueError if the file, or the limit, ends before."""
        self.skip(count)
        return self.file.read(count)

    def skip(self, count: int, seek: bool = False) -> None:
        """Count bytes, and pass over them if ``seek``. Raises ValueError as ``take`` does."""
        if count > self.left - self.read:
            raise ValueError(f"its header claims {count:,} bytes at byte {self.read:,}")
        self.read += count
        if seek:
            self.file.seek(count, 1)

    def number(self, form: str) -> int | float:
        """Return a number of a form of ``struct``."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def count(self) -> int:
        """Return an unsigned number of 64 bits."""
        return int(self.number("<Q"))

    def name(self) -> str:
        """Return a name. Raises ValueError for a length that no name has."""
        length = self.count()
        if not 0 < length <= LONGEST_NAME:
            raise ValueError(f"it has a name of {length:,} bytes at byte {self.read:,}")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> str | None:
        """Return a value as text: numbers of a short array with commas between.

        None for one that is not kept: another array, or a very long text.
        """
        if kind in SCALARS:
            return str(self.number(SCALARS[kind]))
        if kind == TEXT:
            length = self.count()
            if length > LONGEST_KEPT:
                self.skip(length, seek=True)
                return None
            return self.take(length).decode("utf-8", "replace")
        if kind != ARRAY:
            raise ValueError(f"it has a value of the unknown type {kind}")
        if depth == DEEPEST:
            raise ValueError(f"it has arrays in more than {DEEPEST} arrays")
        inner, count = int(self.number("<I")), self.count()
        if inner in SCALARS and count <= MOST_AXES:
            return ",".join(str(self.number(SCALARS[inner])) for _ in range(count))
        if inner in SCALARS:
            self.skip(count * struct.calcsize(SCALARS[inner]), seek=True)
            return None
        if count > (self.left - self.read) // 8:  # each takes eight bytes at least
            raise ValueError(f"it has an array of {count:,} values at byte {self.read:,}")
        for _ in range(count):
            if inner == TEXT:
                self.skip(self.count(), seek=True)
            else:
                self.value(inner, depth + 1)
        return None


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read and check a header; the values stay on the disk.

    Shapes are in PyTorch's order, the reverse of the file's. Metadata are texts, numbers and short
    arrays of numbers.
    Raises CheckpointError for a header that is cut off, or claims what the file cannot hold.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(Reader(file, size), size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CheckpointError(
            f"{path} is truncated or not a GGUF file ({error}); get it again"
        ) from None


def _read(reader: Reader, size: int) -> GGUFHeader:
    if reader.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = int(reader.number("<I"))
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}; known are {VERSIONS}")
    tensors, entries = reader.count(), reader.count()
    if tensors > MOST_TENSORS or entries > MOST_TENSORS:
        raise ValueError(f"it claims {tensors:,} tensors and {entries:,} entries of metadata")
    metadata: dict[str, str] = {}
    for _ in range(entries):
        name = reader.name()
        value = reader.value(int(reader.number("<I")))
        if name in metadata:
            raise ValueError(f"its metadata has {name!r} twice")
        if value is not None:
            metadata[name] = value
    places = [_tensor(reader) for _ in range(tensors)]
    if len({name for name, *_ in places}) < tensors:
        raise ValueError("it has a tensor's name twice")
    alignment = int(metadata.get("general.alignment", "32"))
    if not 0 < alignment <= 1 << 20:
        raise ValueError(f"its general.alignment is {alignment}")
    start = -(-reader.read // alignment) * alignment
    _check_places(places, size - start, alignment)
    ordered = sorted(places, key=lambda place: place[2])
    return GGUFHeader(
        {name: _unfold(name, info, metadata.get(SHAPE_KEY + name)) for name, info, *_ in ordered},
        metadata,
        {name: Place(start + offset, count) for name, _, offset, count in ordered},
    )


def _unfold(name: str, info: TensorInfo, stated: str | None) -> TensorInfo:
    """Return a tensor with the shape that the metadata state."""
    if stated is None:
        return info
    words = stated.split(",")
    shape = tuple(map(int, words)) if all(word.isdecimal() for word in words) else ()
    if not shape or math.prod(shape) != info.count or len(shape) > MOST_AXES:
        raise ValueError(f"its {SHAPE_KEY}{name} is {stated!r} for {info.count:,} values")
    return TensorInfo(info.dtype, shape)


def _tensor(reader: Reader) -> tuple[str, TensorInfo, int, int]:
    """Read one tensor's entry: its name, type and shape, the place of its values, their bytes."""
    name = reader.name()
    if problem := refuse_name(name):
        raise ValueError(problem)
    axes = int(reader.number("<I"))
    if axes > MOST_AXES:
        raise ValueError(f"{name!r} has {axes:,} axes")
    shape = tuple(reader.count() for _ in range(axes))[::-1]
    if 0 in shape and math.prod(filter(None, shape)) >= MOST_VALUES:
        raise ValueError(f"{name!r} has the shape {shape}")
    kind, offset = int(reader.number("<I")), reader.count()
    if kind not in BLOCK_TYPES:
        raise ValueError(f"{name!r} has the unknown block type {kind}")
    type_name, values, block = BLOCK_TYPES[kind]
    if shape and shape[-1] % values:
        raise ValueError(f"{name!r} has rows of {shape[-1]} values in blocks of {values}")
    return name, TensorInfo(type_name, shape), offset, math.prod(shape) // values * block


def _check_places(
    places: list[tuple[str, TensorInfo, int, int]], room: int, alignment: int
) -> None:
    end = 0
    for name, _, offset, size in sorted(places, key=lambda place: place[2]):
        if offset < end or offset % alignment:
            raise ValueError(f"{name!r} begins at byte {offset:,}, after {end:,} bytes of others")
        end = offset + size
        if end > room:
            raise ValueError(f"{name!r} ends at byte {end:,}, but {room:,} follow the header")
