"""Tensors that FSDP has sharded over processes (DTensors): gathered, and sharded alike.

On whole tensors these do nothing, so that checkpoints and averages have one form for all runs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only its part of the parameters."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor. Every process must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def collect(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Return all of each tensor on processes that ``keep`` them, one moved at a time."""
    found = {}
    for name, tensor in tensors.items():
        value = full_tensor(tensor)
        if keep:
            found[name] = value if value is tensor else value.cpu()
    return found


def local(tensor: Tensor) -> Tensor:
    """Return this process's part, which shares its memory with the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def spread_like(parameter: Tensor, values: Tensor) -> Tensor:
    """Copy ``values`` into a tensor with the memory layout and the sharding of ``parameter``."""
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        values = values.to(parameter.device, parameter.dtype)
        return distribute_tensor(values, parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter).copy_(values)
