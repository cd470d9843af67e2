"""Tensors that FSDP has sharded over processes (DTensors): gathered, and sharded alike.

On whole tensors these do nothing, so that checkpoints and averages have one form for all runs.
"""

from __future__ import annotations

from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.training.checkpointing import BLOCKS


def choose_units(accelerator: Accelerator, model: nn.Module) -> None:
    """Choose what FSDP gathers at once: a U-Net's and a text encoder's blocks, by their classes.

    accelerate's choice by size takes lists of blocks too, which PyTorch refuses: a model of such
    lists without these blocks, as adapters are, is gathered as a whole.
    """
    plugin = accelerator.state.fsdp_plugin if hasattr(accelerator.state, "fsdp_plugin") else None
    if plugin is None:
        return
    # Here, as it imports 50 MB that other runs never need.
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    modules = list(model.modules())
    names = [kind.__name__ for kind in BLOCKS if any(isinstance(one, kind) for one in modules)]
    if names:
        plugin.transformer_cls_names_to_wrap = names
        plugin.auto_wrap_policy = partial(
            transformer_auto_wrap_policy, transformer_layer_cls=set(BLOCKS)
        )
    elif any(isinstance(one, nn.ModuleList | nn.ModuleDict) for one in modules):
        plugin.auto_wrap_policy = None


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
