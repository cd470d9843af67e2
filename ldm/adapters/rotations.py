"""Updates that multiply weights: OFT, BOFT (Qiu et al. 2023, Liu et al. 2024) and IA3 (2022).

Each function computes the changed weight less the weight. At scales other than 1, rotations are
mixed with the identity, as kohya and LyCORIS mix them. LyCORIS rotates a layer's outputs, peft its
inputs. Raises ValueError if the tensors are not those of such a weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.checkpoints.lora_kinds import Factors

NEUMANN_TERMS = 5  # of peft's and OneTrainer's approximate inverse
MOST_STAGES = 24


def oft(factors: Factors[Tensor], weight: Tensor, scale: float) -> Tensor:
    """Rotate a weight's outputs or inputs in blocks."""
    if "oft_R" in factors.tensors:
        return peft_oft(factors, weight, scale)
    blocks = factors.tensors["oft_blocks"]
    if blocks.ndim == 4:
        return lycoris_boft(factors, weight, scale)
    count, size = squares(blocks, weight)
    turned = torch.einsum(
        "knm,kn...->km...",
        mixed(cayley(skew(factors, blocks, len(weight))), scale),
        weight.reshape(count, size, *weight.shape[1:]),
    )
    return rescaled(factors, turned.reshape(weight.shape), scale) - weight


def lycoris_boft(factors: Factors[Tensor], weight: Tensor, scale: float) -> Tensor:
    """Rotate a weight's outputs in stages, each of which mixes blocks twice as far apart."""
    blocks = factors.tensors["oft_blocks"]
    count, size = squares(blocks[0], weight)
    if size % 2 or len(blocks) > MOST_STAGES or count % 2 ** (len(blocks) - 1):
        raise ValueError(f"its {len(blocks)} stages do not divide {count} blocks")
    rotations = mixed(cayley(skew(factors, blocks, len(weight))), scale)
    turned = weight.flatten(1) if weight.ndim > 1 else weight[:, None]
    width = turned.shape[1]
    for i, rotation in enumerate(rotations):
        half = 2**i * size // 2
        turned = turned.reshape(-1, 2, half, width).transpose(1, 2).reshape(count, size, width)
        turned = rotation @ turned
        turned = turned.reshape(-1, half, 2, width).transpose(1, 2).reshape(-1, width)
    return rescaled(factors, turned.reshape(weight.shape), scale) - weight


def skew(factors: Factors[Tensor], blocks: Tensor, outputs: int) -> Tensor:
    """Return B − Bᵀ, no longer than α times the outputs if α is given and not 0."""
    skewed = blocks - blocks.transpose(-1, -2)
    alpha = factors.get("alpha")
    limit = 0.0 if alpha is None or alpha.is_meta else float(alpha) * outputs
    if limit > 0:
        length = torch.linalg.vector_norm(skewed) + 1e-8
        skewed = skewed * (limit / length).clamp(max=1.0)
    return skewed


def cayley(skewed: Tensor) -> Tensor:
    """Return the rotations (I + Q)(I − Q)⁻¹ of skew-symmetric matrices."""
    identity = torch.eye(skewed.shape[-1], dtype=skewed.dtype, device=skewed.device)
    return torch.linalg.solve(identity - skewed, identity + skewed, left=False)


def mixed(rotations: Tensor, scale: float) -> Tensor:
    """Mix rotations with the identity."""
    identity = torch.eye(rotations.shape[-1], dtype=rotations.dtype, device=rotations.device)
    return scale * (rotations - identity) + identity


def rescaled(factors: Factors[Tensor], turned: Tensor, scale: float) -> Tensor:
    """Multiply the rows by LyCORIS' trained lengths, if there are any."""
    rows = factors.get("rescale")
    if rows is None:
        return turned
    if rows.numel() != len(turned):
        raise ValueError(f"its {rows.numel()} lengths are for other rows")
    return turned * (1 + scale * (rows.reshape(-1, *[1] * (turned.ndim - 1)) - 1))


def squares(blocks: Tensor, weight: Tensor) -> tuple[int, int]:
    """Return number and size of square blocks on the diagonal of a weight's outputs."""
    if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2]:
        raise ValueError("its blocks are not square")
    count, size = blocks.shape[:2]
    if count * size != len(weight):
        raise ValueError(f"its {count} blocks of {size} are for {count * size} outputs")
    return count, size


def peft_oft(factors: Factors[Tensor], weight: Tensor, scale: float) -> Tensor:
    """Rotate a weight's inputs by peft's matrices, which are saved as upper triangles.

    peft and OneTrainer approximate the inverse by Neumann's series (peft by default). For
    convolutions OneTrainer, whose names are not peft's, rotates the other way round.
    """
    vectors = factors.tensors["oft_R"]
    flat = weight.flatten(1)
    entries = vectors.shape[-1]
    size = (1 + math.isqrt(1 + 8 * entries)) // 2
    if vectors.ndim != 2 or size * (size - 1) // 2 != entries or flat.shape[1] % size:
        raise ValueError(f"its {entries} angles are of no block of {flat.shape[1]} inputs")
    count = flat.shape[1] // size
    if len(vectors) not in (1, count):  # one may be shared
        raise ValueError(f"its {len(vectors)} blocks of {size} are for other inputs")
    if "scaled_oft" in factors.tensors and size > 1:
        vectors = vectors / (2 * math.sqrt(size - 1))
    triangle = vectors.new_zeros(len(vectors), size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    triangle[:, rows, columns] = vectors
    rotation = mixed(neumann(triangle - triangle.transpose(1, 2)), scale)
    if weight.ndim == 4 and not factors.names.get("oft_R", "base_model.").startswith("base_model."):
        rotation = rotation.transpose(1, 2)
    parts = flat.reshape(len(flat), count, size)
    turned = torch.einsum("rij,orj->ori", rotation.expand(count, size, size), parts)
    return turned.reshape(weight.shape) - weight


def neumann(skewed: Tensor) -> Tensor:
    """Approximate Cayley's rotations by I + 2Q + 2Q² + 2Q³ + Q⁴."""
    power = skewed
    total = torch.eye(skewed.shape[-1], dtype=skewed.dtype, device=skewed.device) + 2 * skewed
    for i in range(2, NEUMANN_TERMS):
        power = power @ skewed
        total = total + (1 if i == NEUMANN_TERMS - 1 else 2) * power
    return total


def boft(factors: Factors[Tensor], weight: Tensor, scale: float) -> Tensor:
    """Rotate a weight's inputs by peft's butterfly of blocks, and multiply its rows."""
    blocks, rows = factors.tensors["boft_R"], factors.tensors["boft_s"]
    flat = weight.flatten(1)
    if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3] or rows.numel() != len(weight):
        raise ValueError("its blocks are not square, or its lengths of other rows")
    stages, count, size = blocks.shape[:3]
    inputs = flat.shape[1]
    stages_fit = 0 < stages <= MOST_STAGES and count % 2 ** (stages - 1) == 0
    if count * size != inputs or not stages_fit:
        raise ValueError(f"its {stages} stages of {count} blocks of {size} are for other inputs")
    half = (blocks - blocks.transpose(-1, -2)) / 2
    turned = flat.T
    for i, rotation in enumerate(cayley(-half)):
        order = (
            butterfly(inputs, count // 2**i, size // 2)
            if stages > 1
            else torch.arange(inputs, device="cpu")
        )
        inner = turned[order.argsort()].reshape(count, size, -1)
        turned = (rotation @ inner).reshape(inputs, -1)[order]
    changed = turned.T.reshape(weight.shape) * rows.reshape(-1, *[1] * (weight.ndim - 1))
    return scale * (changed - weight)


def butterfly(inputs: int, blocks: int, run: int) -> Tensor:
    """Return the order that puts, in each block, the even runs of inputs before the odd ones."""
    if run < 1:
        raise ValueError("its blocks are too small")
    order = torch.arange(inputs, device="cpu").reshape(blocks, -1, run)
    return torch.cat((order[:, ::2], order[:, 1::2]), 1).flatten()


def ia3(factors: Factors[Tensor], weight: Tensor, scale: float) -> Tensor:
    """Multiply a weight's inputs or outputs: LyCORIS by 1 + v, peft by v."""
    vector, axis = ia3_axis(factors, weight)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return scale * weight * vector.reshape(shape)


def ia3_axis(factors: Factors[Tensor], weight: Tensor) -> tuple[Tensor, int]:
    """Return what is added to the factors 1, and whether to those of outputs (0) or inputs (1)."""
    vector = factors.get("ia3_l")
    if vector is None:
        vector, on_input = factors.tensors["ia3_weight"], factors.tensors["on_input"]
        known = not on_input.is_meta
        axis = int(on_input) if known else int(vector.numel() != len(weight))
    else:
        if vector.ndim == 2:  # (outputs, 1) or (1, inputs)
            axis = int(vector.shape[0] == 1)
        elif weight.shape[0] != weight.shape[1]:
            axis = int(vector.numel() == weight.shape[1])
        else:
            raise ValueError("it does not say whether it is for inputs or outputs")
        vector = vector - 1
    if axis not in (0, 1) or vector.numel() != weight.shape[axis]:
        raise ValueError(f"its {vector.numel()} factors are for other channels")
    return vector, axis
