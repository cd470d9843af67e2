"""What the tensors of a LoRA file add to one layer, whatever their kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.adapters import low_rank, rotations
from ldm.checkpoints.lora_kinds import Factors

ADDED: dict[str, Callable[[Factors[Tensor], Tensor], Tensor]] = {
    "LoRA": low_rank.lora,
    "LoHa": low_rank.loha,
    "LoKr": low_rank.lokr,
    "GLoRA": low_rank.glora,
}
MULTIPLIED: dict[str, Callable[[Factors[Tensor], Tensor, float], Tensor]] = {
    "OFT": rotations.oft,
    "BOFT": rotations.boft,
    "IA3": rotations.ia3,
}


def changes_weight(factors: Factors[Tensor]) -> bool:
    """Whether the layer's weight changes."""
    return "diff" in factors.tensors or bool((ADDED | MULTIPLIED).keys() & factors.kinds)


def changes_bias(factors: Factors[Tensor]) -> bool:
    """Whether the layer's bias changes, if it has one."""
    return bool({"diff_b", "up_bias", "ia3_l"} & factors.tensors.keys())


def weight_change(weight: Tensor, factors: Factors[Tensor], scale: float = 1.0) -> Tensor:
    """Compute what is added to ``weight``, both float32 and of its shape.

    As in peft, a DoRA's scale multiplies the update that gives the direction, while the length
    stays as learnt; ComfyUI interpolates between the old weight and the new instead.
    Raises ValueError if the tensors are not those of such a weight.
    """
    factors = converted(factors, weight)
    kinds = factors.kinds
    each = [scaled(ADDED[kind](factors, weight), scale) for kind in kinds if kind in ADDED]
    total = sum(each[1:], each[0]) if each else torch.zeros_like(weight)
    if {"dora_scale", "magnitude"} & factors.tensors.keys():
        total = with_lengths(weight + total, factors) - weight
    for kind in kinds:
        if kind in MULTIPLIED:
            total = total + MULTIPLIED[kind](factors, weight, scale)
    if "diff" in factors.tensors:
        total = total + scale * low_rank.as_weight(factors.tensors["diff"], weight)
    return total


def scaled(change: Tensor, scale: float) -> Tensor:
    """Return a change times a scale; without a pass over memory if that is 1."""
    return change if scale == 1 else scale * change


def bias_change(
    bias: Tensor, weight: Tensor, factors: Factors[Tensor], scale: float = 1.0
) -> Tensor:
    """Compute what is added to a layer's ``bias``; ``weight``: that of the same layer, at first.

    Raises ValueError if the tensors are not those of such a bias.
    """
    factors = converted(factors, bias)
    total = torch.zeros_like(bias)
    added = {"diff_b": 1.0}
    if "up_bias" in factors.tensors:
        added["up_bias"] = low_rank.scaling(factors, len(factors.tensors["down"]))
    for role, ratio in added.items():
        value = factors.get(role)
        if value is not None:
            if value.shape != bias.shape:
                raise ValueError(f"its bias has shape {tuple(value.shape)}")
            total = total + scale * ratio * value
    if "ia3_l" in factors.tensors:
        vector, axis = rotations.ia3_axis(factors, weight)
        if axis == 0:  # peft multiplies the layer's output
            total = total + scale * bias * vector.flatten()
    return total


def converted(factors: Factors[Tensor], like: Tensor) -> Factors[Tensor]:
    """Return the same tensors on the device and in the number format of another."""
    tensors = {role: tensor.to(like) for role, tensor in factors.tensors.items()}
    return Factors(tensors, factors.names, factors.alpha)


# DoRA: Liu et al. 2024, "DoRA: Weight-decomposed low-rank adaptation"


def dora_axis(factors: Factors[Tensor], weight: Tensor) -> int:
    """Find the axis along which a DoRA's lengths lie: 0 for rows, as in peft, or 1 for columns.

    LyCORIS writes either; ComfyUI tells them apart by the same rule.
    """
    lengths = factors.get("dora_scale")
    return int(lengths is not None and lengths.ndim > 0 and lengths.shape[0] != len(weight))


def with_lengths(weight: Tensor, factors: Factors[Tensor]) -> Tensor:
    """Return a changed weight with the lengths learnt (eq. 5), if any: it gives the direction.

    In training, the lengths that it has are constants, as section 4.3 proposes.
    """
    lengths = factors.get("dora_scale")
    lengths = factors.get("magnitude") if lengths is None else lengths
    if lengths is None:
        return weight
    axis = dora_axis(factors, weight)
    others = [i for i in range(weight.ndim) if i != axis]
    present = torch.linalg.vector_norm(weight.detach(), dim=others, keepdim=True)
    present = present.clamp(min=torch.finfo(weight.dtype).eps)  # of a row of zeros
    return weight * (lengths.reshape(present.shape) / present)
