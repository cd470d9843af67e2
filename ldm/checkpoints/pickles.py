"""PyTorch's pickles (.ckpt, .pt, .bin) → tensors that are mapped from the file.

A pickle may name any function to call. None is: ``pickle_content`` reads what it says, and what of
it is a plain tensor is mapped here. That is stricter than ``torch.load(weights_only=True)``, which
calls constructors of any size, makes sparse, nested, quantised and meta tensors, sets attributes
that a file names, and has a list of classes that all threads share. Training checkpoints also hold
records of PyTorch Lightning and NumPy, which are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.header import DTYPE_BITS
from ldm.checkpoints.pickle_content import Contents, parameters_of, read_contents
from ldm.checkpoints.pickle_tensors import PickledTensor
from ldm.errors import CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
ALIGNED = 8  # bytes: places in the file of values that are used without a copy
DEPTH = 2  # mappings in each other whose tensors are wanted: {"state_dict": {name: tensor}}
# Tensors may be views of the same values, but all of them together take no more than this many
# times the file, and some bytes: what uses them may copy each.
MOST_SHARED, SHARED_BYTES = 4, 64 << 20

anything = ContextVar("anything", default=False)  # see ``weights_alone``


@contextmanager
def weights_alone() -> Iterator[None]:
    """Allow pickles that would run code inside: their tensors are read, what they name is not."""
    token = anything.set(True)
    try:
        yield
    finally:
        anything.reset(token)


def read_pickle(path: Path) -> object:
    """Read a pickle: its mappings, lists and plain tensors, whose values are mapped.

    Raises CheckpointError as ``read_contents`` does, and for tensors that share so many values that
    they take more than ``MOST_SHARED`` times the file.
    """
    contents = read_contents(path, anything.get())
    return _Mapped(path, contents).convert(contents.value, DEPTH)


class _Mapped:
    """A file that is mapped into memory, privately: writing to a tensor changes no file."""

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path, self.contents = path, contents
        self.most = MOST_SHARED * contents.size + SHARED_BYTES
        self.taken = 0  # bytes of all tensors
        self.whole: Any = None
        self.storages: dict[str, torch.UntypedStorage] = {}
        self.made: dict[tuple[int, int], object] = {}  # by object and depth

    def convert(self, value: object, depth: int) -> object:
        """Return a value with tensors in it, down to a depth; below, it stays as it is."""
        if isinstance(value, PickledTensor):
            return self.tensor(value)
        value = parameters_of(value)
        if not depth or not isinstance(value, Mapping | list):
            return value
        key = (id(value), depth)
        if key not in self.made:
            if isinstance(value, Mapping):
                self.made[key] = {k: self.convert(v, depth - 1) for k, v in value.items()}
            else:
                self.made[key] = [self.convert(item, depth - 1) for item in value]
        return self.made[key]

    def tensor(self, view: PickledTensor) -> Tensor:
        """Map a tensor."""
        info = view.info
        self.taken += info.size
        if self.taken > self.most:
            raise CheckpointError(
                f"{self.path} has tensors of more than {self.most:,} bytes in a file of "
                f"{self.contents.size:,}, as they share their values; get it again"
            )
        dtype = DTYPES[info.dtype]
        bits = DTYPE_BITS.get(view.storage.dtype, 8)
        start = view.storage.start * bits // DTYPE_BITS[info.dtype]
        empty = torch.empty(0, dtype=dtype)
        if not info.count:
            return empty.reshape(info.shape)
        storage: Any = self.storage(view.storage.key)
        return empty.set_(storage, start + view.offset, info.shape, view.stride)

    def storage(self, key: str) -> torch.UntypedStorage:
        """Map a storage; one at an odd place, as before PyTorch 1.6, is copied."""
        if key not in self.storages:
            if self.whole is None:
                size = self.contents.size
                self.whole = torch.UntypedStorage.from_file(str(self.path), False, size)
            start, count = self.contents.places[key]
            part = self.whole[start : start + count]
            self.storages[key] = part.clone() if start % ALIGNED else part
        return self.storages[key]
