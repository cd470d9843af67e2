"""Convolutions and gated layers in 8-bit integers, weights and activations: W8A8. Not exact.

x ≈ s (q − z) with q in 0…255 (Jacob et al. 2018, eq. 1): weights have a scale s for each output
channel, from their largest value; activations one for each picture, from the largest at this call,
so that a picture does not depend on its neighbours in the batch. The zero point z of
a layer is fixed: after a SiLU, which is never below −0.2785, most of the 255 steps go upwards.

Only layers whose products outweigh the rounding of what they read: the 3×3 convolutions of
residual blocks and after enlarging, and the first layer of feed-forwards. (Those with a stride stay
exact: oneDNN's, with AMX, are wrong where what comes out is one pixel wide.) The plain weights stay
beside their 8 bits, so that taking the mode off gives them back.
"""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.errors import ArgumentError
from ldm.fast import onednn
from ldm.fast.cache import Caching, marks, same_marks
from ldm.fast.packed import PackedConv2d, PackedGEGLU, usable
from ldm.fast.replace import replace_children
from ldm.layers import ResnetBlock, Upsample

_logger = logging.getLogger(__name__)
LOWEST = 0.2785  # -SiLU is nowhere larger
AFTER_SILU, SYMMETRIC = 16, 128  # zero points


class Rounded(NamedTuple):
    """Activations of 8 bits: x[i] ≈ scales[i] (q[i] − zero)."""

    q: Tensor  # uint8, of the shape and memory format of x
    scales: list[float]
    zero: int


class Weight(NamedTuple):
    """A weight of 8 bits, as oneDNN reads it."""

    packed: Tensor
    scales: Tensor  # of its rows, float32
    zeros: Tensor  # zero points of its rows, int32
    marks: tuple[object, ...]  # of the weight that it was rounded from


def rounded(x: Tensor, zero: int) -> Rounded:
    """Round activations (B, …), each picture by its largest value."""
    up, axes = 254 - zero, tuple(range(1, x.ndim))
    scale = x.amax(axes).float() / up
    if zero == AFTER_SILU:
        down = torch.full_like(scale, LOWEST / zero)
    else:
        down = x.amin(axes).float() / -up
    # As numbers of x's dtype: what scales the result is rounded to that by PyTorch.
    scales = torch.maximum(scale, down).clamp(min=1e-12).to(x.dtype).tolist()
    y = torch.empty_like(x)
    for i, scale in enumerate(scales):
        torch.mul(x[i], 1 / scale, out=y[i])
    # oneDNN's convolutions read unsigned bytes, but PyTorch is five times as fast to signed ones.
    y = y if zero == SYMMETRIC else y.add_(zero - SYMMETRIC)
    q = y.round_().to(torch.int8).bitwise_xor_(-128).view(torch.uint8)
    return Rounded(q, scales, zero)


def rounded_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight (out, …) to int8, with a scale for each row."""
    weight = weight.float()
    scales = (weight.flatten(1).abs().amax(1) / 127).clamp(min=1e-12)
    return (weight / scales.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8), scales


def pack_conv(layer: nn.Conv2d, zero: int, shape: torch.Size, padding: tuple[int, ...]) -> Weight:
    """Pack a convolution's weight for inputs of a shape."""
    weight, scales = rounded_rows(layer.weight)
    packed = onednn.int8_convolution_weight(weight, scales, zero, layer, padding, shape)
    return Weight(
        packed, scales, torch.zeros(len(scales), dtype=torch.int32, device="cpu"), marks(layer)
    )


def pack_linear(layer: nn.Linear, parts: int, shape: torch.Size) -> list[Weight]:
    """Pack a linear layer's weight, in parts, for inputs of a shape."""
    found, known = [], marks(layer)
    for part in layer.weight.chunk(parts):
        weight, scales = rounded_rows(part)
        packed = onednn.int8_linear_weight(weight, shape)
        zeros = torch.zeros(len(scales), dtype=torch.int32, device="cpu")
        found.append(Weight(packed, scales, zeros, known))
    return found


def rounded_convolution(
    layer: nn.Conv2d, x: Rounded, weight: Weight, padding: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """x ∗ W + b."""
    parts = (weight.packed, weight.scales, weight.zeros)
    y = onednn.int8_convolution(x.q, x.zero, *parts, layer, padding, dtype)
    bias = y.new_zeros(()) if layer.bias is None else layer.bias[:, None, None]
    for row, scale in zip(y, x.scales, strict=True):
        torch.add(bias, row, alpha=scale, out=row)
    return y


def rounded_linear(
    q: Tensor, scale: float, weight: Weight, bias: Tensor | None, dtype: torch.dtype, then: str
) -> Tensor:
    """x Wᵀ + b of symmetric 8 bits, and ``then`` "gelu" (the exact one) or "none" on it."""
    parts = (weight.packed, weight.scales, weight.zeros)
    return onednn.int8_linear(q, scale, SYMMETRIC, *parts, bias, dtype, then)


class Int8Conv2d(Caching, PackedConv2d):
    """``nn.Conv2d`` in 8 bits."""

    zero = SYMMETRIC  # point of what it reads
    cached: Weight | None = None

    def convolve(self, x: Tensor, padding: str | tuple[int, ...]) -> Tensor:
        if isinstance(padding, str) or not usable(self, x):
            return super().convolve(x, padding)
        weight = self.cached
        if weight is None or not same_marks(weight.marks, marks(self)):
            with torch.inference_mode(False), torch.no_grad():
                weight = pack_conv(self, self.zero, x.shape, padding)
            self.cached = weight
        q = rounded(x.contiguous(memory_format=torch.channels_last), self.zero)
        return rounded_convolution(self, q, weight, padding, x.dtype)


class Int8AfterSiLU(Int8Conv2d):
    """``Int8Conv2d`` of what a SiLU gives."""

    zero = AFTER_SILU


class Int8GEGLU(Caching, PackedGEGLU):
    """``GEGLU`` in 8 bits."""

    cached: list[Weight] | None = None  # of the values and of their gates

    def forward(self, x: Tensor) -> Tensor:
        if not usable(self.proj, x):
            return super().forward(x)
        weights = self.cached
        if weights is None or not same_marks(weights[0].marks, marks(self.proj)):
            with torch.inference_mode(False), torch.no_grad():
                weights = pack_linear(self.proj, 2, x.shape[1:])
            self.cached = weights
        value, gate = weights
        b, c = (None, None) if self.proj.bias is None else self.proj.bias.float().chunk(2)
        whole = rounded(x.contiguous(), SYMMETRIC)
        y = x.new_empty((*x.shape[:-1], len(value.scales)))
        for row, q, scale in zip(y, whole.q, whole.scales, strict=True):
            opened = rounded_linear(q, scale, gate, c, x.dtype, "gelu")
            torch.mul(rounded_linear(q, scale, value, b, x.dtype, "none"), opened, out=row)
        return y


def quantize(unet: nn.Module) -> None:
    """Make those layers of a U-Net that was sped up compute in 8 bits.

    Raises ArgumentError if this PyTorch or processor cannot.
    """
    if not supported():
        raise ArgumentError(
            "int8 needs PyTorch's oneDNN operators of 8 bits, which do not work here (--debug or "
            "logging at debug level says why); leave it out"
        )
    for module in list(unet.modules()):
        if isinstance(module, ResnetBlock):
            module.conv1 = Int8AfterSiLU.of(module.conv1)
            module.conv2 = Int8AfterSiLU.of(module.conv2)
        elif isinstance(module, Upsample):
            module.conv = Int8Conv2d.of(module.conv)
    replace_children(
        unet, lambda layer: Int8GEGLU.of(layer) if type(layer) is PackedGEGLU else layer
    )


def gains(dtype: torch.dtype) -> bool:
    """Whether 8 bits are faster than a dtype here.

    Measured at Stable Diffusion 1.5's size: 1.8 times as fast as float32; of bfloat16 only 1.1
    where the processor has AMX, and less than that at the built-in model's size.
    """
    amx = onednn.has_amx()
    return onednn.has_vnni() and not (amx and dtype == torch.bfloat16) and supported()


@functools.cache
def supported() -> bool:
    """Whether this PyTorch and processor have the private operators, with the right results."""
    ok, problem = False, "other results than in float32"
    try:
        with torch.inference_mode(False), torch.no_grad():
            ok = _right()
    except onednn.PROBLEMS as error:
        problem = str(error).splitlines()[0]
    if not ok:
        _logger.debug("8 bits cannot be used here: %s", problem)
    return ok


def _right() -> bool:
    """Try each operator on small tensors."""
    generator = torch.Generator().manual_seed(0)
    image, x = (
        torch.randn(s, generator=generator, dtype=torch.float32, device="cpu")
        for s in ((2, 16, 5, 5), (1, 3, 16))
    )
    conv, layer = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(16, 8)
    pairs = []
    for zero, y in ((AFTER_SILU, F.silu(image)), (SYMMETRIC, image)):
        weight = pack_conv(conv, zero, y.shape, (1, 1))
        q = rounded(y.contiguous(memory_format=torch.channels_last), zero)
        pairs.append((rounded_convolution(conv, q, weight, (1, 1), y.dtype), conv(y)))
    q, (weight,) = rounded(x, SYMMETRIC), pack_linear(layer, 1, x.shape[1:])
    for then, f in (("none", nn.Identity()), ("gelu", F.gelu)):
        got = rounded_linear(q.q[0], q.scales[0], weight, layer.bias, x.dtype, then)
        pairs.append((got, f(layer(x[0]))))
    return all((a - b).abs().max().item() < 0.05 for a, b in pairs)
