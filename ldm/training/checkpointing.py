"""Gradient checkpointing: less memory for a second forward pass (Chen et al. 2016).

Of each residual block, transformer block and layer of a text encoder only the inputs are kept for
the backward pass, which computes the rest again. Gradients are the same, dropout's too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm.clip import EncoderLayer
from ldm.layers import ResnetBlock, SpatialAttention, TransformerBlock

# As of diffusers' ``enable_gradient_checkpointing`` and transformers' ``gradient_checkpointing``.
BLOCKS = (ResnetBlock, TransformerBlock, SpatialAttention, EncoderLayer)


def checkpoint_blocks(network: nn.Module) -> None:
    """Let a U-Net or a text encoder keep only its blocks' inputs for the backward pass.

    What it computes without gradients stays as it is, as do layers that are changed inside the
    blocks, such as by adapters. Calling it twice does no harm.
    """
    for block in network.modules():
        if isinstance(block, BLOCKS):
            block.forward = partial(recomputed, block)  # type: ignore[method-assign]


def is_checkpointed(block: nn.Module) -> bool:
    """Whether ``checkpoint_blocks`` has changed a block."""
    return isinstance(block, BLOCKS) and "forward" in vars(block)


def recomputed(block: nn.Module, *arguments: Any, **named: Any) -> Any:
    """Compute a block by its class, now and again in the backward pass."""
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled() or not _SWITCH.on:
        return forward(*arguments, **named)
    # Of the random state only dropout reads: copying it costs little beside a block.
    return checkpoint(forward, *arguments, use_reentrant=False, **named)


class _Switch:
    """Whether blocks compute again: off while what they would keep without it is counted."""

    on = True


_SWITCH = _Switch()


@contextlib.contextmanager
def everything_kept() -> Iterator[None]:
    """Let checkpointed blocks keep all, to count it."""
    _SWITCH.on = False
    try:
        yield
    finally:
        _SWITCH.on = True
