"""The gate that all tensors of files pass: plain, under names that can be shown, of real numbers.

What a file holds is checked three times: its mapping when it is read (here ``check_mapping``, by
names alone), the dtype of each tensor when it becomes a weight (``check_real``), and its values
(``check_finite``): always of LoRAs, embeddings and adapters, which are small, when a model is
written, and of models on request (``check_finite=True``, ``ldm info --check``). A model's file is
mapped, and reading all of it takes a quarter of the time of loading the built-in model and more
for larger ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ldm.config.checking import shown
from ldm.errors import CheckpointError

if TYPE_CHECKING:  # ``ldm info`` needs no PyTorch
    from torch import Tensor

    from ldm.checkpoints.deferred import Stored

T = TypeVar("T")

LONGEST_NAME = 1_000  # characters; the longest name of published files has 150
# Letters that move the cursor, end a line or turn the direction of writing.
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
MOST_SHOWN = 200  # characters of a name that is refused
REAL = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


class Unfit(str):
    """What stands in the place of a tensor that is none of plain numbers: the reason."""

    __slots__ = ()


def refuse_name(name: object) -> str | None:
    """Say what is wrong with the name of a tensor; None for a good one."""
    if not isinstance(name, str):
        return f"the key of a tensor is of the type {type(name).__name__}"
    if len(name) > LONGEST_NAME:
        start = shown(name, MOST_SHOWN)
        return f"the name {start} has {len(name):,} characters, more than {LONGEST_NAME:,}"
    if CONTROL.search(name):
        return f"the name {shown(name, MOST_SHOWN)} has characters that cannot be shown"
    return None


def check_mapping(path: Path, content: object, *kinds: type[T]) -> dict[str, T]:
    """Return a file's mapping of names to tensors, which are of these classes.

    Raises CheckpointError for anything else in it, by name.
    """
    refused = f"{path} does not hold a plain mapping of names to tensors"
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{refused}; it is no file of weights, or damaged")
    for name, value in content.items():
        if problem := refuse_name(name):
            raise CheckpointError(f"{refused}: {problem}")
        if not isinstance(value, kinds):
            raise CheckpointError(f"{refused}: {shown(name, MOST_SHOWN)} is {describe(value)}")
    return dict(content)


def describe(value: object) -> str:
    """Say what stands in the place of a tensor."""
    if isinstance(value, Unfit):
        return str(value)
    called = getattr(getattr(value, "function", None), "name", None)  # of a pickle
    return f"an object of {called}" if called else f"of the type {type(value).__name__}"


def check_real(path: Path, name: str, value: Stored) -> None:
    """Raise CheckpointError, naming a tensor, unless it is of floating point numbers.

    Those of float8 and of GGUF's blocks are known quantised formats. Integers are none: they are
    blocks of other programs, whose scales are elsewhere.
    """
    if not is_real(value):
        kind = str(value.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{path}: {name} is {kind}; expected floating point ({', '.join(REAL)}): "
            "get a float16 version of the file"
        )


def is_real(value: Stored | Tensor) -> bool:
    """Whether a tensor is of a dtype that weights have; float8_e8m0fnu is one of scales."""
    return str(value.dtype).removeprefix("torch.") in REAL


def check_finite(path: Path | str, name: str, value: Any) -> None:
    """Raise CheckpointError unless all values of a tensor, whose name is checked, are finite."""
    if not is_finite(value):
        raise CheckpointError(f"{path}: {name} holds NaN or infinity; get it again")


def is_finite(value: Any) -> bool:
    """Whether all values of a tensor are finite numbers."""
    import torch

    if not value.numel():
        return True
    if value.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        value = value.to(torch.float16)  # which holds all values of both
    # One NaN or infinity makes the sum so, and it is three times as fast as looking at each value.
    wide = torch.promote_types(value.dtype, torch.float32)
    if value.sum(dtype=wide).isfinite():
        return True
    low, high = torch.aminmax(value)  # of large values; both are NaN if any is
    return bool(low.isfinite() and high.isfinite())
