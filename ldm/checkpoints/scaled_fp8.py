"""Scaled float8 weights, as ComfyUI and others write them: a weight is its float8 values × a scale.

Beside ``X.weight`` there is ``X.scale_weight``, and a marker ``scaled_fp8`` where the network's
names begin; or, since the end of 2025, ``X.weight_scale`` with ``X.comfy_quant``. Scales of a
layer's inputs (``X.scale_input``, ``X.input_scale``) only serve float8 arithmetic, which is not
used here: weights are computed in the chosen dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.deferred import FLOAT8, Deferred, Stored
from ldm.checkpoints.plain import check_real, is_finite
from ldm.errors import CheckpointError

SCALES = (".scale_weight", ".weight_scale")
UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
MARKER = "scaled_fp8"
AGAIN = "get a float16 version of the model"


def is_scale(name: str) -> bool:
    """Whether a name is that of a scale or of a marker, and not of a network's tensor."""
    return name.endswith((*SCALES, *UNUSED)) or name.rpartition(".")[2] == MARKER


def apply_scales(tensors: Mapping[str, Stored], path: Path) -> dict[str, Stored]:
    """Return a file's tensors with its scales applied when a weight is read, and without them.

    Raises CheckpointError, naming ``path``, for a scale that is missing, of a shape that does not
    fit its weight, not finite, or of other formats than float8.
    """
    scales = {name: value for name, value in tensors.items() if name.endswith(SCALES)}
    markers = [name for name in tensors if name.rpartition(".")[2] == MARKER]
    stored: dict[str, Stored] = {k: v for k, v in tensors.items() if not is_scale(k)}
    for name, scale in scales.items():
        key = f"{name.rpartition('.')[0]}.weight"
        weight = tensors.get(key)
        if weight is None:
            raise CheckpointError(f"{path} has {name}, but no {key}; get the model again")
        if isinstance(weight, Deferred) or isinstance(scale, Deferred):
            raise CheckpointError(f"{path} has scales of blocks, which is not supported; {AGAIN}")
        if isinstance(stored[key], Deferred):
            raise CheckpointError(f"{path} has two scales of {key}; get the model again")
        stored[key] = _scaled(path, key, weight, name, scale)
    if markers:
        _check_complete(path, {name.removesuffix(MARKER): name for name in markers}, stored)
    _check_named(path, tensors, stored)
    return stored


def _scaled(path: Path, key: str, weight: Tensor, name: str, scale: Tensor) -> Deferred:
    if not weight.is_floating_point():
        kind = str(weight.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{path} holds {key} in blocks of {kind} with a scale, which is not supported; {AGAIN}"
        )
    check_real(path, key, weight)
    rows = (len(weight), *[1] * (weight.ndim - 1)) if weight.ndim else ()
    if scale.numel() != 1 and scale.shape != rows:
        raise CheckpointError(
            f"{path}: {name} has the shape {tuple(scale.shape)} for a weight of "
            f"{tuple(weight.shape)}; expected one value, or one a row {rows}; {AGAIN}"
        )
    if not scale.is_floating_point() or not is_finite(scale.to(torch.float32)):
        found = next(iter(scale.flatten()[:1].tolist()), "nothing")
        raise CheckpointError(
            f"{path}: {name} is no finite number, but {found} of {scale.dtype}; {AGAIN}"
        )
    factor = scale.to(torch.float32).reshape(rows if scale.shape == rows else ())
    return Deferred(weight.shape, torch.float32, lambda: weight.to(torch.float32) * factor)


def _check_complete(path: Path, markers: Mapping[str, str], stored: Mapping[str, Stored]) -> None:
    """Raise CheckpointError if a linear layer that a marker speaks of lacks its scale.

    markers: by the beginning of the names that each speaks of.
    """
    for key, value in stored.items():
        if not key.endswith(".weight") or "embedding" in key or value.ndim != 2:
            continue
        if isinstance(value, Tensor) and value.dtype in FLOAT8:
            ends = (i + 1 for i, letter in enumerate(key) if letter == ".")
            for beginning in ("", *(key[:end] for end in ends)):
                if beginning in markers:
                    _miss(path, key, markers[beginning])


def _check_named(path: Path, tensors: Mapping[str, Stored], stored: Mapping[str, Stored]) -> None:
    """Raise CheckpointError if a layer that a ``comfy_quant`` describes lacks its scale."""
    for name in tensors:
        key = f"{name.rpartition('.')[0]}.weight"
        if name.endswith(".comfy_quant") and not isinstance(stored.get(key), Deferred):
            _miss(path, key, name)


def _miss(path: Path, key: str, marker: str) -> None:
    raise CheckpointError(
        f"{path} holds scaled weights by its {marker}, but {key} has no scale; get the model again"
    )
