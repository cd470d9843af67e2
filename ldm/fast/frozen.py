"""Frozen layers in training: of less memory, and fast on CPUs.

The gradient of a frozen layer's input, Wᵀ g, depends on its weight alone, but PyTorch's convolution
keeps its input, too. On a CPU it also puts the whole weight into blocks at every call, forward and
backward: of few pixels that takes several times as long as the products (48 against 10 ms for 1280
channels of 8×8 in float32). Here such convolutions are products of the weight as it lies.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from ldm.fast import onednn
from ldm.fast.products import product
from ldm.fast.replace import replace_children, with_state_of
from ldm.layers import GEGLU

FEW = 256  # pixels of all rows up to which a convolution is computed as a product


def freeze(
    network: nn.Module, dtype: torch.dtype | None = None, exact: Collection[str] = ()
) -> None:
    """Replace a network's layers whose weights are frozen by the ones here.

    dtype: of autocast in training, in which the weights are stored then, as autocast would convert
        them at every step; None keeps theirs. Other parameters keep theirs anyway, and so does the
        first convolution, by which the dtype of a U-Net is known.
    exact: paths of layers whose weights keep their dtype, too.
    """
    replace_children(network, _frozen)
    for path, layer in network.named_modules():
        stored = isinstance(layer, FrozenLinear | FrozenConv2d) and not layer.weight.requires_grad
        if dtype is not None and stored and path != "conv_in" and path not in exact:
            layer.to(dtype)


def _frozen(layer: nn.Module) -> nn.Module:
    """Choose the layer for the place of this one."""
    if type(layer) is nn.Linear and not layer.weight.requires_grad:
        return with_state_of(layer, FrozenLinear)
    if type(layer) is nn.Conv2d and not layer.weight.requires_grad:
        return with_state_of(layer, FrozenConv2d)
    if type(layer) is GEGLU and not layer.proj.weight.requires_grad:
        return with_state_of(layer, FrozenGEGLU)
    return layer


class FrozenLinear(nn.Linear):
    """``nn.Linear`` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class FrozenConv2d(nn.Conv2d):
    """``nn.Conv2d`` by `convolve`."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(self, x, weight, bias)


class FrozenGEGLU(GEGLU):
    """``GEGLU`` that keeps a third less on CPUs: it computes the activated gate again."""

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", _Gated.apply(self.proj(x))) if x.is_cpu else super().forward(x)


class _Gated(torch.autograd.Function):
    """x · gelu(gate) of (x, gate) side by side: (…, 2D) → (…, D)."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        x, gate = both.chunk(2, dim=-1)
        return F.gelu(gate).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        x, gate = both.chunk(2, dim=-1)
        found = torch.empty_like(both)
        x_grad, gate_grad = found.chunk(2, dim=-1)
        # In place, or each product would take half as much memory as ``both``.
        torch.ops.aten.gelu(gate, out=x_grad)
        x_grad.mul_(grad)
        torch.mul(grad, x, out=gate_grad)
        torch.ops.aten.gelu_backward(gate_grad, gate, grad_input=gate_grad)
        return found


def computed_in(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return autocast's dtype where that is on, else the weight's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute x Wᵀ + b, as ``F.linear``; a weight of another dtype than x computes in its own."""
    dtype = computed_in(x, weight)
    y = _Linear.apply if by_onednn(x, weight, dtype) else F.linear
    back = dtype if torch.is_autocast_enabled(x.device.type) else x.dtype
    return y(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).to(back)


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a layer's convolution with these weights, as ``Conv2d._conv_forward``."""
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0, 0)
    return convolution(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: Any,
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Compute x ∗ W + b, as ``F.conv2d``; dtypes as of `linear`."""
    dtype = computed_in(x, weight)
    back = dtype if torch.is_autocast_enabled(x.device.type) else x.dtype
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    how = (stride, padding, dilation, groups)
    if x.is_cpu and x.dim() == 4 and not weight.requires_grad and not isinstance(padding, str):
        return cast("Tensor", _Convolution.apply(x, weight, bias, *how)).to(back)
    return F.conv2d(x, weight, bias, *how).to(back)


def by_onednn(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a product may take oneDNN's kernels by name, and is of a frozen weight."""
    return x.is_cpu and dtype == torch.float32 and not weight.requires_grad and onednn.packs(dtype)


class _Linear(torch.autograd.Function):
    """`product` with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return product(grad, weight.t()), None, None


class _Convolution(torch.autograd.Function):
    """A convolution with a frozen weight, on a CPU."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.how, ctx.size = (stride, padding, dilation, groups), x.shape
        if not as_product(weight, x.shape, *ctx.how):
            return F.conv2d(x, weight, bias, *ctx.how)
        patches, (height, width) = unfold(x, weight.shape, stride, padding)
        y = product(patches, rows_of(weight), bias)
        return y.view(len(x), height, width, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        if not as_product(weight, ctx.size, *ctx.how):
            x_grad = conv2d_input(ctx.size, weight, grad, *ctx.how)
        else:
            stride, padding = ctx.how[:2]
            rows = grad.permute(0, 2, 3, 1).reshape(-1, len(weight))
            patches = product(rows, rows_of(weight).t())
            x_grad = fold(patches, weight.shape, ctx.size, stride, padding)
        return x_grad, *[None] * 6


def outputs(size: torch.Size, kernel: torch.Size, stride: Any, padding: Any) -> tuple[int, int]:
    """Return the height and width of a convolution's output."""
    height, width = (
        (size[i] + 2 * padding[i - 2] - kernel[i]) // stride[i - 2] + 1 for i in (2, 3)
    )
    return height, width


def as_product(
    weight: Tensor, size: torch.Size, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    """Whether a convolution of (B,C,H,W) is computed as a product."""
    height, width = outputs(size, weight.shape, stride, padding)
    one_pixel = weight.shape[2:] == (1, 1) and tuple(padding) == (0, 0) and tuple(stride) == (1, 1)
    return (
        groups == 1
        and tuple(dilation) == (1, 1)
        and weight.is_contiguous(memory_format=torch.channels_last)
        and (one_pixel or 0 < size[0] * height * width <= FEW)
    )


def rows_of(weight: Tensor) -> Tensor:
    """See a channels_last weight (out,in,h,w) as a matrix (out, h·w·in)."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def unfold(
    x: Tensor, kernel: torch.Size, stride: Any, padding: Any
) -> tuple[Tensor, tuple[int, int]]:
    """Return what a kernel sees at each place of x, (places, h·w·C), and their (height, width)."""
    height, width = outputs(x.shape, kernel, stride, padding)
    x = x.permute(0, 2, 3, 1)
    if any(padding):
        x = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    rows, down, right, channels = x.stride()
    seen = x.as_strided(
        (len(x), height, width, kernel[2], kernel[3], x.shape[3]),
        (rows, down * stride[0], right * stride[1], down, right, channels),
    )
    return seen.reshape(-1, kernel[2] * kernel[3] * x.shape[3]), (height, width)


def fold(
    patches: Tensor, kernel: torch.Size, size: torch.Size, stride: Any, padding: Any
) -> Tensor:
    """Add up what `unfold` took apart: → (B,C,H,W) of ``size``, channels_last."""
    height, width = outputs(size, kernel, stride, padding)
    batch, channels, high, wide = size
    seen = patches.view(batch, height, width, kernel[2], kernel[3], channels)
    if kernel[2:] == (1, 1) and (height, width) == (high, wide):
        return seen.view(batch, high, wide, channels).permute(0, 3, 1, 2)
    (top, left), (down, right) = padding, stride
    x = patches.new_zeros((batch, high + 2 * top, wide + 2 * left, channels))
    for i in range(kernel[2]):
        for j in range(kernel[3]):
            x[:, i : i + height * down : down, j : j + width * right : right] += seen[:, :, :, i, j]
    return x[:, top : top + high, left : left + wide].permute(0, 3, 1, 2)
