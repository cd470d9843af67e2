"""Updates that are products of small matrices: LoRA, LoHa, LoKr and GLoRA.

Each function computes ΔW, of the weight's shape, at scale 1. Tensors of an attention or linear
layer are matrices; those of a convolution also have its kernel, as one of their axes or apart.
Raises ValueError if the tensors are not those of such a weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.checkpoints.lora_kinds import Factors


def lora(factors: Factors[Tensor], weight: Tensor) -> Tensor:
    """Compute α/r · up · down (Hu et al. 2021), or LoCon's three convolutions."""
    down, up, mid = factors.tensors["down"], factors.tensors["up"], factors.get("mid")
    ratio = scaling(factors, len(down))
    if mid is not None:  # LoCon's Tucker form: a small convolution between 1×1 ones
        product = torch.einsum("or,rskl,si->oikl", up.flatten(1), mid, down.flatten(1))
        return ratio * as_weight(product, weight)
    product = up.flatten(1) @ down.flatten(1)
    return ratio * as_weight(product, weight)


def loha(factors: Factors[Tensor], weight: Tensor) -> Tensor:
    """Compute α/r · (a₁b₁) ∘ (a₂b₂): the Hadamard product (Hyeon-Woo et al. 2022, "FedPara")."""
    first, second = (
        product(*(factors.get(f"hada_{name}") for name in (f"w{i}_a", f"w{i}_b", f"t{i}")))
        for i in (1, 2)
    )
    if first.shape != second.shape:
        raise ValueError("its halves differ in shape")
    ratio = scaling(factors, len(factors.tensors["hada_w1_b"]))
    return ratio * as_weight(first * second, weight)


def lokr(factors: Factors[Tensor], weight: Tensor) -> Tensor:
    """Compute α/r · w₁ ⊗ w₂: the Kronecker product; each is a matrix or a product itself."""
    whole = []
    rank = None  # the ratio is 1 if both are whole
    for i in (1, 2):
        part = factors.get(f"lokr_w{i}")
        if part is None:
            a, b = factors.tensors[f"lokr_w{i}_a"], factors.tensors[f"lokr_w{i}_b"]
            rank = rank or len(b)
            part = product(a, b, factors.get("lokr_t2") if i == 2 else None)
        whole.append(part)
    first, second = whole
    if first.ndim > second.ndim or second.ndim > weight.ndim:
        raise ValueError("its factors have too many axes")
    first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
    ratio = 1.0 if rank is None else scaling(factors, rank)
    sizes = [a * b for a, b in zip(first.shape, second.shape, strict=True)]
    check_weight_shape(sizes, weight)
    return ratio * torch.kron(first.contiguous(), second.contiguous()).reshape(weight.shape)


def glora(factors: Factors[Tensor], weight: Tensor) -> Tensor:
    """Compute α/r · (W · a₁a₂ + b₁b₂) (Chavan et al. 2023, "One-for-all")."""
    names = ("a1", "a2", "b1", "b2")
    a1, a2, b1, b2 = (factors.tensors[f"glora_{name}"].flatten(1) for name in names)
    mid = factors.get("glora_bm")
    added = b1 @ b2 if mid is None else torch.einsum("or,rskl,si->oikl", b1, mid, b2)
    turned = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
    return scaling(factors, len(a2)) * (as_weight(added, weight) + as_weight(turned, weight))


def product(a: Tensor | None, b: Tensor | None, core: Tensor | None) -> Tensor:
    """Multiply two factors; with a Tucker core (r, s, …), along both of its first axes."""
    assert a is not None and b is not None
    if core is not None:
        return torch.einsum("ij...,jr,ip->pr...", core, b, a)
    found = a.flatten(1) @ b.flatten(1)
    return found.reshape(len(found), *b.shape[1:])


def scaling(factors: Factors[Tensor], rank: int) -> float:
    """Return α/r; a missing α stands for the rank."""
    alpha = factors.get("alpha")
    if alpha is None:
        return 1.0 if factors.alpha is None else factors.alpha / rank
    return 1.0 if alpha.is_meta else float(alpha) / rank


def as_weight(change: Tensor, weight: Tensor) -> Tensor:
    """Return a change in the weight's shape. Raises ValueError if it has another."""
    check_weight_shape(change.shape, weight)
    return change.reshape(weight.shape)


def check_weight_shape(shape: Sequence[int], weight: Tensor) -> None:
    """Raise ValueError unless a shape is a weight's, whose kernel may be flat, or 1×1."""
    flat = tuple(weight.flatten(1).shape) if weight.ndim > 1 else tuple(weight.shape)
    if not same_shapes(shape, weight.shape) and tuple(shape) != flat:
        raise ValueError(f"its product has shape {tuple(shape)}")


def same_shapes(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether shapes are equal except ones at the end: a 1×1 convolution is a linear layer."""
    a, b = ((*shape, *[1] * (4 - len(shape))) for shape in (a, b))
    return a == b
