"""Gradient checkpointing: less memory for a second forward pass (Chen et al. 2016).

Of each residual block, transformer block and layer of a text encoder only the inputs are kept for
the backward pass, which computes the rest again. Gradients are the same, dropout's too. Beside
frozen weights on a CPU, `checkpoint_partly` does so with what is quick to compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.clip import EncoderLayer
from ldm.fast import recompute
from ldm.layers import ResnetBlock, SpatialAttention, TransformerBlock

# As of diffusers' ``enable_gradient_checkpointing`` and transformers' ``gradient_checkpointing``.
BLOCKS = (ResnetBlock, TransformerBlock, SpatialAttention, EncoderLayer)

# Pixels from which on `checkpoint_partly` computes again: finer levels keep more bytes for the same
# number of operations. Networks with fewer than ``MANY`` weights keep little anyway.
PIXELS, PIXELS_OF_SMALL = 64, 1024
MANY = 100_000_000


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


def keeps_all(block: nn.Module, x: Tensor) -> bool:
    """Whether a block that ``is_checkpointed`` keeps all of this input, as it has few pixels."""
    forward = vars(block)["forward"]
    return forward.func is partly_recomputed and x.shape[1] < forward.args[1]


def recomputed(block: nn.Module, *arguments: Any, **named: Any) -> Any:
    """Compute a block by its class, now and again in the backward pass."""
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled() or not _SWITCH.on:
        return forward(*arguments, **named)
    # Of the random state only dropout reads: copying it costs little beside a block.
    return checkpoint(forward, *arguments, use_reentrant=False, **named)


def checkpoint_partly(network: nn.Module) -> None:
    """Let a frozen U-Net on a CPU keep less than half, for a tenth more time.

    Transformer blocks keep their inputs and the outputs of attention among pixels, residual blocks
    the inputs of their normalisations, if there are enough pixels. Blocks with gradient
    checkpointing keep less already.
    """
    large = sum(weight.numel() for weight in network.parameters()) >= MANY
    least = PIXELS if large else PIXELS_OF_SMALL
    for block in network.modules():
        if is_checkpointed(block):
            continue
        if isinstance(block, TransformerBlock):
            block.forward = partial(partly_recomputed, block, least)  # type: ignore[method-assign]
        elif isinstance(block, ResnetBlock):
            block.activate = partial(normalised_again, block, least)  # type: ignore[method-assign]


def partly_recomputed(
    block: nn.Module, least: int, x: Tensor, *arguments: Any, **named: Any
) -> Tensor:
    """Compute a block by its class; in the backward pass again, except what is kept inside.

    least: pixels of x, below which everything is kept.
    """
    forward = partial(type(block).forward, block, **named)
    if not x.is_cpu or x.shape[1] < least:
        return forward(x, *arguments)
    return recompute.recomputed(block, forward, x, *arguments)


def normalised_again(block: ResnetBlock, least: int, norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise and activate; in the backward pass again, if there are so many pixels."""
    activate = partial(type(block).activate, block, norm)
    if not x.is_cpu or x.shape[2:].numel() < least:
        return activate(x)
    return recompute.recomputed(norm, activate, x)


class _Switch:
    """Whether blocks compute again: off while what they would keep without it is counted."""

    on = True


_SWITCH = _Switch()


@contextlib.contextmanager
def everything_kept(watch: Callable[[Tensor], object]) -> Iterator[None]:
    """Let checkpointed blocks keep all, to count it; watch: see ``recompute.everything_kept``."""
    _SWITCH.on = False
    try:
        with recompute.everything_kept(watch):
            yield
    finally:
        _SWITCH.on = True
