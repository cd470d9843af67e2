"""Tensors that are computed when they are used: those that a file holds in blocks, or scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Deferred:
    """A tensor of a file whose shape is known and whose values are computed by ``read``."""

    shape: torch.Size
    dtype: torch.dtype  # of what ``read`` returns
    read: Callable[[], Tensor]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


Stored: TypeAlias = Tensor | Deferred


def dense(value: Stored) -> Tensor:
    """Return a tensor's values; a deferred one is computed now."""
    return value.read() if isinstance(value, Deferred) else value


def computable(value: Tensor) -> Tensor:
    """Return a tensor in a dtype that PyTorch computes in: float8 becomes float16, exactly."""
    return value.to(torch.float16) if value.dtype in FLOAT8 else value


def change(value: Stored, function: Callable[[Tensor], Tensor]) -> Stored:
    """Apply a function of one tensor, to a deferred one when it is read."""
    if isinstance(value, Tensor):
        return function(value)
    shape = function(torch.empty(value.shape, device="meta")).shape
    return Deferred(shape, value.dtype, lambda: function(value.read()))


def take_third(x: Tensor, index: int) -> Tensor:
    """Return a third of the rows: queries, keys or values of a layer that has them in one."""
    return x.chunk(3)[index]


def dtype_to_keep(values: Iterable[Stored]) -> torch.dtype | None:
    """Choose the dtype of a network whose files are in float8 or in blocks; None keeps each one's.

    Nothing computes in those formats: it is one dtype that holds all values without rounding, such
    as float16 for float8 beside float16, and float32 for blocks.
    """
    dtypes, packed = {torch.float16}, False
    for value in values:
        packed |= isinstance(value, Deferred) or value.dtype in FLOAT8
        if value.dtype.is_floating_point and value.dtype not in FLOAT8:
            dtypes.add(value.dtype)
    return reduce(torch.promote_types, dtypes) if packed else None
