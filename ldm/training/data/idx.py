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

import numpy as np

from ldm.errors import DataError
from ldm.training.data.arrays import with_channels
from ldm.training.data.options import DataOptions
from ldm.training.data.pictures import Pictures

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

    Raises DataError for another magic number and for a file that is cut off or too long.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); {REMEDY}") from None
    wanted = bytes([0, 0, UBYTE, dimensions])
    if content[:4] != wanted:
        raise DataError(
            f"{path} begins with {content[:4].hex(' ')}; an IDX file of bytes in {dimensions} "
            f"dimensions begins with {wanted.hex(' ')}; {REMEDY}"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path} ends within its header; {REMEDY}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} holds {len(content) - start} values, but its header says "
            f"{' × '.join(map(str, shape))} = {math.prod(shape)}; {REMEDY}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


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
        if find_idx(folder, "t10k", "images-idx3"):
            more, more_labels = read_split(folder, "t10k")
            if more.shape[1:] != images.shape[1:]:
                raise DataError(
                    f"{folder}: pictures are {images.shape[1:]} px in train and {more.shape[1:]} "
                    f"in t10k; {REMEDY}"
                )
            held_out = np.arange(len(images) + len(more)) >= len(images)
            images, labels = np.concatenate([images, more]), np.concatenate([labels, more_labels])
        self.images = images
        super().__init__(
            str(folder), options, len(images), labels=labels, held_out=held_out, classes=DIGITS
        )

    def picture(self, index: int, enough: int) -> np.ndarray:
        return with_channels(self.images[index], self.options.channels)


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
