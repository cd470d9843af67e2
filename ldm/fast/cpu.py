"""Layers that make PyTorch's CPU kernels fast in training, and correct: part of every model.

Unlike the rest of ``ldm.fast`` these are not optional: the pipeline, and training when it builds a
network, install them by `adapt_to_cpu`; on other devices they do nothing. The readable modules hold
the plain layers.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.fast import recompute
from ldm.fast.attention_by_heads import AttentionByHeads
from ldm.fast.replace import M, replace_children, with_state_of
from ldm.layers import DotProductAttention, Downsample

MANY_PAIRS = 1 << 16  # of tokens in a head, from which on their matrix is not kept
MANY_KEYS = 256  # from which on the output is rather kept than computed again: see ``recompute``


def adapt_to_cpu(model: M) -> M:
    """Exchange the layers of a model for those that work around PyTorch's CPU kernels.

    Returns the model, whose names, parameters and buffers stay as they are. Calling it twice
    does no harm.
    """
    replace_children(model, _adapted)
    return model


def _adapted(layer: nn.Module) -> nn.Module:
    """Choose the layer for the place of this one."""
    if type(layer) is nn.GroupNorm:
        return with_state_of(layer, PlanarGroupNorm)
    if type(layer) is Downsample:
        return with_state_of(layer, ExactDownsample)
    if type(layer) is DotProductAttention:
        return with_state_of(layer, TrainableAttention)
    return layer


class Relayout(torch.autograd.Function):
    """Copy x (B,C,H,W) to another memory format, and its gradient back to the one it came from."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, there: torch.memory_format, back: torch.memory_format
    ) -> Tensor:
        ctx.back = back
        return x.contiguous(memory_format=there)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.contiguous(memory_format=ctx.back), None, None


class PlanarGroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018) of channels_last tensors in contiguous memory.

    PyTorch's CPU kernels for channels_last bfloat16 are slow: forward and backward of
    (128, 96, 16, 16) take 64 ms with them and 18 ms here, the copies included. The output and the
    gradients are channels_last if the input is: operations on mixed formats are slower still.
    """

    def forward(self, x: Tensor) -> Tensor:
        planar, pixelwise = torch.contiguous_format, torch.channels_last
        if x.device.type != "cpu" or x.is_contiguous():
            return super().forward(x)
        y = super().forward(Relayout.apply(x, planar, pixelwise))
        return Relayout.apply(y, pixelwise, planar)


def trainable_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute ``DotProductAttention``; with gradients on a CPU, by plain products.

    There the fused kernel takes 3 to 5 times as long with its backward pass: 92 against 18 ms for
    bfloat16 (64, 4, 64, 56) on one core. Many tokens go head by head (see ``AttentionByHeads``).
    """
    if q.device.type != "cpu" or not (torch.is_grad_enabled() and q.requires_grad):
        return F.scaled_dot_product_attention(q, k, v)
    if q.shape[2] * k.shape[2] >= MANY_PAIRS:
        keeps = k.shape[2] >= MANY_KEYS
        known = recompute.known() if keeps else None
        y = AttentionByHeads.apply(q, k, v, () if known is None else (known,))
        return cast("Tensor", recompute.keep(y) if keeps else y)
    with torch.autocast("cpu", enabled=False):  # it would compute the softmax in float32
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1) @ v


class TrainableAttention(DotProductAttention):
    """``DotProductAttention`` by `trainable_attention`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return trainable_attention(q, k, v)


class ExactDownsample(Downsample):
    """``Downsample`` that computes narrow bfloat16 images in float32.

    Of a result one column wide, oneDNN's convolution reads past the end (torch 2.13 with AMX).
    """

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[3] + (self.conv.padding[0] == 0)  # as padded
        if x.dtype != torch.bfloat16 or x.device.type != "cpu" or width > 4:
            return super().forward(x)
        weight = self.conv.weight.float()
        bias = None if self.conv.bias is None else self.conv.bias.float()
        return self.conv._conv_forward(self.pad(x).float(), weight, bias).to(x.dtype)
