"""Objects of other libraries as arguments: what pictures, tensors and generators have to be.

Nothing heavy is imported: what was made by a library that is not imported is no object of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

MOST_NESTED = 3  # lists of lists of pictures


class Form(NamedTuple):
    """What a value has to be. fault: returns what is wrong with one; None for nothing."""

    fault: Callable[[Any], str | None]


def is_a(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class, by its module, if that is imported."""
    found = getattr(sys.modules.get(module), name, None)
    return found is not None and isinstance(value, found)


def is_list(value: object) -> bool:
    """Whether a value is a list or a tuple."""
    return isinstance(value, list | tuple)


def tensor_fault(value: Any, finite: bool = True) -> str | None:
    """Return what a tensor is, unless it is one of real numbers that can be computed with.

    finite: whether NaN and infinities are faults.
    """
    if not is_a(value, "torch", "Tensor"):
        return f"{type(value).__name__}; expected a tensor"
    if value.is_nested or value.is_quantized or str(value.layout) != "torch.strided":
        return "a nested, quantized or sparse tensor; it must be a dense one"
    if value.device.type == "meta":
        return "a tensor without values, on the device meta"
    if value.is_complex():
        return "a tensor of complex numbers; it must have real ones"
    if not value.numel():
        return f"a tensor of the shape {tuple(value.shape)}, without values"
    if finite and value.is_floating_point() and not bool(value.detach().isfinite().all()):
        return "a tensor with values that are NaN or infinite"
    return None


def tensors_fault(value: Any) -> str | None:
    """Return what is wrong with a tensor, or with a list of tensors."""
    for one in value if is_list(value) else [value]:
        if (fault := tensor_fault(one)) is not None:
            return fault
    return None


def generators_fault(value: Any) -> str | None:
    """Return what is wrong with a generator, or with a list of generators."""
    for one in value if is_list(value) else [value]:
        if not is_a(one, "torch", "Generator"):
            return (
                f"of the type {type(one).__name__}; it must be a torch.Generator, or a list of them"
            )
        if one.device.type != "cpu":
            return f"on {one.device}; it must be of the CPU, so that no device changes a picture"
    return None


def pictures_fault(value: Any, nested: int = 0) -> str | None:
    """Return what is wrong with a picture, or with lists of pictures.

    What a loader of pictures says better, such as a wrong shape, is left to that.
    """
    if is_list(value):
        if nested == MOST_NESTED:
            return "a list of lists of lists of lists; it must be a picture, or a list of pictures"
        found = (pictures_fault(one, nested + 1) for one in value)
        return next((fault for fault in found if fault is not None), None)
    if is_a(value, "torch", "Tensor"):
        return tensor_fault(value, finite=False)
    if is_a(value, "numpy", "ndarray"):
        return None if value.dtype.kind in "buif" else f"an array of the type {value.dtype}"
    if value is None or isinstance(value, str | Path) or is_a(value, "PIL.Image", "Image"):
        return None
    if is_a(value, "ldm.control.preprocessed", "ControlSource"):
        return None
    return (
        f"of the type {type(value).__name__}; it must be a path or a PIL image, an array or a "
        "tensor, or a list of these"
    )


TENSOR, TENSORS = Form(tensor_fault), Form(tensors_fault)
GENERATORS, PICTURES = Form(generators_fault), Form(pictures_fault)
