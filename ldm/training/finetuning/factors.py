"""The factors that LoRA and its kin learn for one layer, as they are before the first step.

All begin with ΔW = 0, so that a run begins with the base's own pictures. The roles are those of
``ldm.checkpoints.lora_kinds``, the shapes and the random values kohya's and LyCORIS'.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

KINDS = ("lora", "loha", "lokr")


def new_factors(
    kind: str, weight: Tensor, rank: int, *, dora: bool = False, factor: int = -1
) -> dict[str, Tensor]:
    """Return new factors for a layer's ``weight``, (out, in) or (out, in, h, w), by their roles.

    kind: one of ``KINDS``.
    dora: whether the lengths of the rows are learnt apart from their directions (Liu et al. 2024).
    factor: of LoKr, see ``split``.
    """
    outputs, (inputs, *kernel) = len(weight), weight.shape[1:]
    make = {"lora": _lora, "loha": _loha}
    if kind == "lokr":
        factors = _lokr(outputs, inputs, kernel, rank, factor)
    else:
        factors = make[kind](outputs, inputs, kernel, rank)
    if dora:
        others = tuple(range(1, weight.ndim))
        factors["dora_scale"] = torch.linalg.vector_norm(weight.float(), dim=others, keepdim=True)
    return factors


def _lora(outputs: int, inputs: int, kernel: list[int], rank: int) -> dict[str, Tensor]:
    """Down is random and up is 0 (Hu et al. 2021, section 4.1)."""
    ones = [1] * len(kernel)
    return {
        "down": uniform(rank, inputs, *kernel),
        "up": torch.zeros(outputs, rank, *ones),
    }


def _loha(outputs: int, inputs: int, kernel: list[int], rank: int) -> dict[str, Tensor]:
    """(a₁b₁) ∘ (a₂b₂) with a₂ = 0 (Hyeon-Woo et al. 2022)."""
    columns = inputs * math.prod(kernel)
    return {
        "hada_w1_a": 0.1 * torch.randn(outputs, rank),
        "hada_w1_b": torch.randn(rank, columns),
        "hada_w2_a": torch.zeros(outputs, rank),
        "hada_w2_b": torch.randn(rank, columns),
    }


def _lokr(
    outputs: int, inputs: int, kernel: list[int], rank: int, factor: int
) -> dict[str, Tensor]:
    """w₁ ⊗ w₂ with w₂ = 0, which is a product of two if that is smaller (Yeh et al. 2023)."""
    (out_1, out_2), (in_1, in_2) = split(outputs, factor), split(inputs, factor)
    factors = {"lokr_w1": uniform(out_1, in_1)}
    if 2 * rank < max(out_2, in_2):
        factors["lokr_w2_a"] = uniform(out_2, rank)
        factors["lokr_w2_b"] = torch.zeros(rank, in_2 * math.prod(kernel))
    else:
        factors["lokr_w2"] = torch.zeros(out_2, in_2, *kernel)
    return factors


def split(size: int, factor: int) -> tuple[int, int]:
    """Write a size as a product a·b with a ≤ b, as LyCORIS does.

    factor: one of the two where it divides the size, else the most that a can be; -1 for the two
    that are nearest to each other.
    """
    most = math.isqrt(size)
    if factor > 0:
        if size % factor == 0:
            return min(factor, size // factor), max(factor, size // factor)
        most = min(most, factor)
    first = next(a for a in range(max(most, 1), 0, -1) if size % a == 0)
    return first, size // first


def uniform(*shape: int) -> Tensor:
    """Return random values as those of a new layer of PyTorch (He et al. 2015, with a = √5)."""
    values = torch.empty(shape)
    nn.init.kaiming_uniform_(values, a=math.sqrt(5))
    return values


def largest_rank(weight: Tensor) -> int:
    """Return the rank that a layer's ``weight`` can have at most."""
    return min(len(weight), weight[0].numel())
