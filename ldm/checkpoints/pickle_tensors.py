"""The tensors in PyTorch's pickles: what they are views of, and which of them hold real numbers.

Only plain, dense tensors whose values all lie in the file, each at a place of its own, are weights.
Everything else that a pickle can call a tensor becomes an ``Unfit`` with its reason: sparse,
nested, quantised and meta tensors, those of other classes, expanded and conjugated ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ldm.checkpoints.header import DTYPE_BITS, MOST_AXES, TensorInfo
from ldm.checkpoints.pickle_opcodes import Damaged, Global
from ldm.checkpoints.plain import Unfit

_UTILS = "torch._utils._rebuild_"
REBUILD = {f"{_UTILS}{name}": place for name, place in
           (("tensor", None), ("tensor_v2", 6), ("tensor_v3", 7))}  # fmt: skip
WRAPPERS = {f"{_UTILS}{name}" for name in ("parameter", "parameter_with_state")}
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
META = "a tensor of the device meta, which has no values"
UNFIT = {
    f"{_UTILS}sparse_tensor": "a sparse tensor",
    f"{_UTILS}sparse_csr_tensor": "a sparse tensor",
    f"{_UTILS}qtensor": "a quantised tensor",
    f"{_UTILS}nested_tensor": "a nested tensor",
    f"{_UTILS}meta_tensor_no_storage": META,
    f"{_UTILS}wrapper_subclass": "a tensor of another class",
    f"{_UTILS}device_tensor_from_numpy": "a tensor of another device",
    f"{_UTILS}device_tensor_from_cpu_tensor": "a tensor of another device",
}
DTYPES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64",
    "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64",
    "Untyped": "U8",
}  # fmt: skip
TORCH_DTYPES = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """The values that tensors are views of."""

    key: str
    dtype: str
    start: int  # values before it, in those of the key
    count: int  # values, or bytes of an untyped one


@dataclass(frozen=True, eq=False)
class PickledTensor:
    """A tensor of a file: a view of a storage."""

    info: TensorInfo
    storage: Storage
    offset: int  # values of the tensor's dtype
    stride: tuple[int, ...]


def dtype_of(storage_class: str) -> str:
    """Return the dtype of a storage's class, such as ``torch.FloatStorage``."""
    word = storage_class.rpartition(".")[2].removesuffix("Storage")
    return DTYPES.get(word, word.lower())


def make_tensor(function: str, values: tuple[Any, ...]) -> PickledTensor | Unfit:
    """Return a tensor by the arguments of a function in ``REBUILD``.

    Raises Damaged for arguments that no tensor has.
    """
    if len(values) < 4:
        raise Damaged("it has a tensor without a shape")
    storage, offset, shape, stride = values[:4]
    if isinstance(storage, Unfit):
        return storage
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or len(shape) > MOST_AXES:
        raise Damaged("it has a tensor without a shape")
    if not isinstance(stride, tuple) or len(stride) != len(shape):
        raise Damaged("it has a tensor without a stride for each axis")
    if not all(type(number) is int and 0 <= number < 2**60 for number in (*shape, *stride, offset)):
        numbers = [side if type(side) is int and abs(side) < 2**70 else "?" for side in shape[:4]]
        raise Damaged(f"it has a tensor of the shape ({', '.join(map(str, numbers))})")
    place = REBUILD[function]
    if place is not None and len(values) > place and values[place]:
        return Unfit("a tensor of conjugate or negative numbers")
    dtype = storage.dtype
    if place == 7:  # of dtypes that have no class of storages
        word = values[6].name.rpartition(".")[2] if isinstance(values[6], Global) else ""
        dtype = TORCH_DTYPES.get(word, word)
    if dtype not in DTYPE_BITS:
        return Unfit(f"a tensor of the dtype {dtype or 'unknown'}, which is not supported")
    room = storage.count * DTYPE_BITS.get(storage.dtype, 8) // DTYPE_BITS[dtype]
    if reason := misfit(shape, stride, offset, room):
        return Unfit(reason)
    return PickledTensor(TensorInfo(dtype, shape), storage, offset, stride)


def misfit(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, room: int) -> str | None:
    """Say why a view of ``room`` values is no plain tensor: it must lie inside, without overlap."""
    if not math.prod(shape):
        return None
    last = 0  # of the values so far, from the narrowest axis to the widest
    for step, side in sorted(zip(stride, shape, strict=True)):
        if side > 1 and step <= last:
            return "a tensor whose values overlap, such as an expanded one"
        last += (side - 1) * step
    if offset + last >= room:
        return f"a tensor of {math.prod(shape):,} values, of which the file has {room:,}"
    return None
