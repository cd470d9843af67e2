"""MNIST's own files: the IDX format of LeCun, Cortes and Burges (yann.lecun.com/exdb/mnist).

A file is a magic number (two zero bytes, the type of the values, the number of dimensions), each
dimension as a big-endian 32-bit number, and the values. Fashion-MNIST and KMNIST are named alike.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ldm.errors import DataError
from ldm.training.data.arrays import with_channels
from ldm.training.data.options import DataOptions
from ldm.training.data.pictures import Pictures
from ldm.training.foreign import open_file

MOST_BYTES = 1 << 30  # of values: the largest such set, EMNIST, has 0.6 GB
RATIO = 1032  # bytes that one compressed byte can at most become (zlib.net/zlib_tech.html)
CHUNK = 1 << 20
UBYTE = 0x08  # the type of unsigned bytes, the only one that MNIST uses
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
REMEDY = "get the file again, or build the set with python -m tools.build_mnist"


def find_idx(folder: Path, split: str, kind: str) -> Path | None:
    """Find the file of a split ("train", "t10k") and kind ("images-idx3", "labels-idx1")."""
    for dot in "-.":  # some copies are called train-images.idx3-ubyte
        for end in ("", ".gz"):
            path = folder / f"{split}-{kind.replace('-', dot)}-ubyte{end}"
            if path.is_file():
                return path
    return None


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read the uint8 values of an IDX file, or of one inside .gz.

    The header is read first, and no more than it says.
    Raises DataError for another magic number, for a file that is cut off or too long, and for more
    than ``MOST_BYTES`` values, or more than the file can hold.
    """
    try:
        with open_file(path) as file:
            size = path.stat().st_size
            if path.suffix != ".gz":
                return read_values(path, file, size, dimensions)
            with gzip.open(file) as content:
                return read_values(path, content, RATIO * size, dimensions)
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        reason = str(error) or "not enough memory"
        raise DataError(f"{path} cannot be read ({reason}); {REMEDY}") from None


def read_values(path: Path, file: Any, room: int, dimensions: int) -> np.ndarray:
    """Read the header and the values; ``room``: the most bytes that the file can have."""
    start = file.read(4 + 4 * dimensions)
    wanted = bytes([0, 0, UBYTE, dimensions])
    if start[:4] != wanted:
        raise DataError(
            f"{path} begins with {start[:4].hex(' ')}; an IDX file of bytes in {dimensions} "
            f"dimensions begins with {wanted.hex(' ')}; {REMEDY}"
        )
    if len(start) < 4 + 4 * dimensions:
        raise DataError(f"{path} ends within its header; {REMEDY}")
    shape = struct.unpack(f">{dimensions}I", start[4:])
    count = math.prod(shape)
    says = f"its header says {' × '.join(map(str, shape))} = {count}"
    if not 0 < count <= MOST_BYTES:
        raise DataError(f"{path}: {says}; expected 1 to {MOST_BYTES:,} values; {REMEDY}")
    if count > (most := room - len(start)):
        raise DataError(f"{path} holds {most} values, but {says}; {REMEDY}")
    values = np.empty(count, np.uint8)
    rest, found = memoryview(values.data), 0
    while read := file.readinto(rest[found : found + CHUNK]):
        found += read
    more = len(file.read(1))
    if found < count or more:
        holds = "more than that" if more else f"{found}"
        raise DataError(f"{path} holds {holds} values, but {says}; {REMEDY}")
    return values.reshape(shape)


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write uint8 values as an IDX file, compressed where the name ends in .gz."""
    content = bytes([0, 0, UBYTE, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content += np.ascontiguousarray(values, np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


class IDXImages(Pictures):
    """A folder with train-images-idx3-ubyte and train-labels-idx1-ubyte, and the same of t10k.

    The t10k files are held out; a folder without them holds out rows of train. Pictures are grey,
    (N,28,28,1) in MNIST; classes are "zero" to "nine" unless ``options.classes`` names others.
    """

    cheap = True

    def __init__(self, folder: str | Path, options: DataOptions | None = None) -> None:
        folder, options = Path(folder), options or DataOptions()
        images, labels = read_split(folder, "train")
        held_out = None
        self.parts = [images]  # train, and t10k
        if find_idx(folder, "t10k", "images-idx3"):
            more, more_labels = read_split(folder, "t10k")
            if more.shape[1:] != images.shape[1:]:
                raise DataError(
                    f"{folder}: pictures are {images.shape[1:]} px in train and {more.shape[1:]} "
                    f"in t10k; {REMEDY}"
                )
            held_out = np.arange(len(images) + len(more)) >= len(images)
            labels = np.concatenate([labels, more_labels])
            self.parts.append(more)
        super().__init__(
            str(folder), options, len(labels), labels=labels, held_out=held_out, classes=DIGITS
        )

    def picture(self, index: int, enough: int) -> np.ndarray:
        first = self.parts[0]
        picture = first[index] if index < len(first) else self.parts[1][index - len(first)]
        return with_channels(picture, self.options.channels)


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the pictures (N,H,W) and labels (N,) of a split. Raises DataError for a mismatch."""
    files = []
    for kind in ("images-idx3", "labels-idx1"):
        file = find_idx(folder, split, kind)
        if file is None:
            raise DataError(f"{folder} has no {split}-{kind}-ubyte (or .gz); {REMEDY}")
        files.append(file)
    images, labels = read_idx(files[0], 3), read_idx(files[1], 1)
    if len(images) != len(labels):
        raise DataError(
            f"{files[0]} has {len(images)} pictures but {files[1].name} {len(labels)} labels; "
            f"{REMEDY}"
        )
    return images, labels
