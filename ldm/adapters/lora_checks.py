"""Whether a LoRA's tensors can be used: their shapes beside a weight's, and their values."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldm.adapters.changes import (
    bias_change,
    changes_bias,
    changes_weight,
    dora_axis,
    weight_change,
)
from ldm.adapters.low_rank import same_shapes
from ldm.checkpoints.lora_kinds import Factors
from ldm.checkpoints.plain import check_finite
from ldm.errors import CheckpointError

# The roles of a plain LoRA, whose shapes say all. PyTorch's functions of shapes alone take 0.1 s to
# import, and a millisecond a layer.
PLAIN = {"down", "up", "alpha"}
NUMBERS = ("alpha", "on_input", "scaled_oft")  # roles of a single number, which may be an integer


def fits(factors: Factors[Tensor], weight: Tensor, bias: Tensor | None) -> bool:
    """Whether tensors have the shapes that change a layer of these; nothing is computed."""
    if "down" in factors.tensors and "up" in factors.tensors:
        if not lora_fits(factors, weight):
            return False
        if factors.tensors.keys() <= PLAIN:
            return True
    on_meta = Factors(
        {role: empty(tensor) for role, tensor in factors.tensors.items()}, factors.names
    )
    try:
        if changes_weight(factors):
            weight_change(empty(weight), on_meta)
        if bias is not None and changes_bias(factors):
            bias_change(empty(bias), empty(weight), on_meta)
    except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError):
        return False
    own_bias = {"diff_b", "up_bias"} & factors.tensors.keys()
    return bias is not None or not own_bias


def empty(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape without memory."""
    return torch.empty(tensor.shape, device="meta")


def lora_fits(factors: Factors[Tensor], weight: Tensor) -> bool:
    """Whether the factors' product has the weight's shape, its kernel where LoRA has it."""
    down, up, mid = factors.tensors["down"], factors.tensors["up"], factors.get("mid")
    if down.ndim < 2 or up.ndim < 2 or not down.numel() or not up.numel():
        return False
    rank, outer = len(down), len(down) if mid is None else up.shape[1]
    inner = weight.shape[1:] if mid is None else weight.shape[1:2]
    if not same_shapes(down.shape, (rank, *inner)) or not same_shapes(
        up.shape, (len(weight), outer)
    ):
        return False
    return mid is None or (weight.ndim == 4 and mid.shape == (outer, rank, *weight.shape[2:]))


def check_shapes(
    path: Path, name: str, factors: Factors[Tensor], weight: Tensor, bias: Tensor | None
) -> None:
    """Raise CheckpointError unless the tensors change a layer of this weight and bias."""
    check_lengths(path, factors, weight)
    for role in NUMBERS:
        number = factors.get(role)
        if number is not None and number.numel() != 1:
            raise CheckpointError(
                f"{path}: {factors.names[role]} has shape {tuple(number.shape)}, not one number; "
                "get it again"
            )
    if not fits(factors, weight, bias):
        order = ("up", "mid", "down", *factors.tensors)
        roles = [role for role in dict.fromkeys(order) if role in factors.tensors]
        shapes = [
            tuple(factors.tensors[role].shape)
            for role in roles
            if role not in (*NUMBERS, "dora_scale", "magnitude")
        ]
        target = f"a weight {tuple(weight.shape)}"
        if bias is None and {"diff_b", "up_bias"} & factors.tensors.keys():
            target += " without a bias"
        raise CheckpointError(
            f"{path}: {name} has factors {' and '.join(map(str, shapes))} for {target}; "
            "it is for another family of models, or damaged"
        )


def check_lengths(path: Path, factors: Factors[Tensor], weight: Tensor) -> None:
    """Raise CheckpointError unless a DoRA has one length for each row, or column, of the weight."""
    for kind in ("dora_scale", "magnitude"):
        lengths = factors.get(kind)
        if lengths is None:
            continue
        axis = dora_axis(factors, weight) if lengths.ndim and kind == "dora_scale" else 0
        wrong = axis >= weight.ndim or lengths.numel() != weight.shape[axis]
        if wrong or (axis and lengths.shape[0] != 1):
            raise CheckpointError(
                f"{path}: {factors.names[kind]} has shape {tuple(lengths.shape)} for a weight "
                f"{tuple(weight.shape)}; it is for another family of models, or damaged"
            )


def check_factor_values(path: Path, factors: Factors[Tensor]) -> None:
    """Raise CheckpointError, naming the tensor, unless all values are finite numbers."""
    for role, name in factors.names.items():
        tensor = factors.tensors[role]
        # kohya writes a whole α as an integer.
        real = not tensor.is_complex() if role in NUMBERS else tensor.is_floating_point()
        if not real:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}; expected floating point")
        check_finite(path, name, tensor.float())
