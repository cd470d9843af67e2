"""Whether a LoRA's tensors can be used: their shapes beside a weight's, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm.checkpoints.lora_names import Factors
from ldm.errors import CheckpointError


def pair(factors: Factors[Tensor]) -> tuple[Tensor, Tensor]:
    """Return both factors of an update, which every update that is used has."""
    assert factors.down is not None and factors.up is not None
    return factors.down, factors.up


def check_shapes(path: Path, name: str, factors: Factors[Tensor], weight: Tensor) -> None:
    """Raise CheckpointError unless the factors' product has the weight's shape."""
    down, up = pair(factors)
    mid = factors.mid
    fits = down.ndim > 1 and up.ndim > 1 and down.numel() > 0 and up.numel() > 0
    if fits:
        rank, outer = len(down), len(down) if mid is None else up.shape[1]
        inner = weight.shape[1:] if mid is None else weight.shape[1:2]
        fits = same_shapes(down.shape, (rank, *inner)) and same_shapes(
            up.shape, (len(weight), outer)
        )
        if mid is not None:
            fits = fits and weight.ndim == 4 and mid.shape == (outer, rank, *weight.shape[2:])
    if not fits:
        shapes = [tuple(tensor.shape) for tensor in (up, mid, down) if tensor is not None]
        raise CheckpointError(
            f"{path}: {name} has factors {' and '.join(map(str, shapes))} for a weight "
            f"{tuple(weight.shape)}; it is for another family of models, or damaged"
        )
    check_lengths(path, factors, weight)
    alpha = factors.alpha
    if isinstance(alpha, Tensor) and alpha.numel() != 1:
        raise CheckpointError(
            f"{path}: {factors.names['alpha']} has shape {tuple(alpha.shape)}, not one number; "
            "get it again"
        )


def check_lengths(path: Path, factors: Factors[Tensor], weight: Tensor) -> None:
    """Raise CheckpointError unless a DoRA has one length for each row, or column, of the weight."""
    for kind, lengths in (("dora_scale", factors.dora_scale), ("magnitude", factors.magnitude)):
        if lengths is None:
            continue
        axis = dora_axis(factors, weight) if lengths.ndim else 0
        if lengths.numel() != weight.shape[axis] or (axis and lengths.shape[0] != 1):
            raise CheckpointError(
                f"{path}: {factors.names[kind]} has shape {tuple(lengths.shape)} for a weight "
                f"{tuple(weight.shape)}; it is for another family of models, or damaged"
            )


def check_factor_values(path: Path, factors: Factors[Tensor]) -> None:
    """Raise CheckpointError, naming the tensor, unless all values are finite numbers."""
    tensors = {
        "down": factors.down,
        "up": factors.up,
        "mid": factors.mid,
        "alpha": factors.alpha,
        "dora_scale": factors.dora_scale,
        "magnitude": factors.magnitude,
    }
    for kind, name in factors.names.items():
        tensor = tensors[kind]
        assert isinstance(tensor, Tensor)  # what has a name is in the file
        # kohya writes a whole α as an integer.
        real = not tensor.is_complex() if kind == "alpha" else tensor.is_floating_point()
        if not real:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}; expected floating point")
        if not tensor.float().isfinite().all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; get it again")


def dora_axis(factors: Factors[Tensor], weight: Tensor) -> int:
    """Find the axis along which a DoRA's lengths lie: 0 for rows, as in peft, or 1 for columns.

    LyCORIS writes either; ComfyUI tells them apart by the same rule.
    """
    if factors.dora_scale is None:
        return 0
    return int(factors.dora_scale.shape[0] != len(weight))


def same_shapes(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether shapes are equal except ones at the end: a 1×1 convolution is a linear layer."""
    a, b = ((*shape, *[1] * (4 - len(shape))) for shape in (a, b))
    return a == b
