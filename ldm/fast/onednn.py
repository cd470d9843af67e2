"""PyTorch's private operators, all of them: this file alone names them.

They are those that PyTorch's own compiler calls, for oneDNN's weights in blocks and for 8 bits.
They may change with any release, so they are tried before they are used (here by `packs`, those of
8 bits by `supported` of `ldm.fast.int8` and `ldm.fast.fp8`); where one is missing or wrong, the
plain layers compute.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_logger = logging.getLogger(__name__)
# What a private operator raises that is missing, or that takes other arguments than here.
PROBLEMS = (RuntimeError, AttributeError, NotImplementedError, TypeError)


def as_plain_tensors() -> contextlib.AbstractContextManager:
    """Treat subclasses of tensors as tensors: ``__torch_function__`` is not called inside."""
    return torch._C.DisableTorchFunctionSubclass()


def packed_linear_weight(weight: Tensor, rows: int) -> Tensor:
    """Pack a weight (out, in) into blocks, for inputs of so many rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)


def packed_convolution_weight(
    weight: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    shape: Sequence[int],
) -> Tensor:
    """Pack a weight (out, in, kh, kw) into blocks, for inputs of a shape."""
    how: Any = (padding, stride, dilation, groups, shape)  # PyTorch's stub lacks some of these
    return torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *how)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """Compute x Wᵀ + b with a packed W, and ``then`` "gelu" (the exact one) on it."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, then, [], "none")


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x Wᵀ + b with W as it lies, also transposed: in float32 ``F.linear`` takes MKL."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")


def packed_linear_mul(x: Tensor, other: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Compute (x Wᵀ + b) · other with a packed W."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, other.contiguous(), packed, bias, "mul")


def packed_convolution(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Compute x ∗ W + b with a packed W; the result is channels_last whatever x is."""
    return torch.ops.mkldnn._convolution_pointwise(
        x, packed, bias, padding, stride, dilation, groups, "none", [], ""
    )


@functools.cache
def packs(dtype: torch.dtype) -> bool:
    """Whether the operators above are there for a dtype, with the right results."""
    ok, problem = False, "other results than the plain operators"
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise RuntimeError("no native bfloat16")
        with torch.inference_mode(False), torch.no_grad(), as_plain_tensors():
            ok = _right(dtype)
    except PROBLEMS as error:
        problem = str(error).splitlines()[0]
    if not ok:
        _logger.debug("packed %s weights cannot be used here: %s", dtype, problem)
    return ok


def _right(dtype: torch.dtype) -> bool:
    """Try each operator on small tensors."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)

    x, weight, bias, image, kernel = (
        draw(3, 8), draw(6, 8), draw(6), draw(1, 8, 5, 5), draw(6, 8, 3, 3),
    )  # fmt: skip
    packed, ones = packed_linear_weight(weight, 3), (1, 1)
    blocks = packed_convolution_weight(kernel, ones, ones, ones, 1, image.shape)
    pairs = [
        (plain_linear(x, weight, bias), F.linear(x, weight, bias)),
        (plain_linear(x[:, :6].contiguous(), weight.t()), x[:, :6] @ weight),
        (packed_linear(x, packed, bias), F.linear(x, weight, bias)),
        (packed_linear(x, packed, bias, "gelu"), F.gelu(F.linear(x, weight, bias))),
        (packed_linear_mul(x, x[:, :6], packed, bias), F.linear(x, weight, bias) * x[:, :6]),
        (
            packed_convolution(image, blocks, bias, ones, ones, ones, 1),
            F.conv2d(image, kernel, bias, padding=1),
        ),
        (packed.to_dense(), weight),
        (blocks.to_dense(), kernel),
    ]
    near = 1e-5 if dtype == torch.float32 else 0.05
    return all(torch.allclose(a.float(), b.float(), near, near) for a, b in pairs)


def int8_linear_weight(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Pack an int8 weight (out, in) into blocks, for inputs of a shape."""
    return torch.ops.onednn.qlinear_prepack(weight, list(shape))


def int8_convolution_weight(
    weight: Tensor,
    scales: Tensor,
    zero: int,
    layer: nn.Conv2d,
    padding: Sequence[int],
    shape: Sequence[int],
) -> Tensor:
    """Pack an int8 weight (out, in, kh, kw) into blocks, for inputs of a shape and zero point."""
    how = (layer.stride, padding, layer.dilation, 1, list(shape))
    return torch.ops.onednn.qconv_prepack(weight, scales, 1.0, zero, *how)


def int8_linear(
    q: Tensor,
    scale: float,
    zero: int,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    then: str,
) -> Tensor:
    """Compute x Wᵀ + b of 8 bits, and ``then`` "gelu" (the exact one) or "none" on it."""
    return torch.ops.onednn.qlinear_pointwise(
        q, scale, zero, packed, scales, zeros, bias, 1.0, 0, dtype, then, [], "none"
    )


def int8_convolution(
    q: Tensor,
    zero: int,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor,
    layer: nn.Conv2d,
    padding: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """Compute x ∗ W of 8 bits, for activations of scale 1."""
    return torch.ops.onednn.qconv2d_pointwise(
        q, 1.0, zero, packed, scales, zeros, None, layer.stride, padding,
        layer.dilation, 1, 1.0, 0, dtype, "none", [], "",
    )  # fmt: skip


def fp8_product(
    q: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    """Compute x Wᵀ in a dtype, of 8 bits by rows: q (M, in), (M, 1); weight (out, in), (out, 1).

    CUDA's kernel writes bfloat16 alone; a CPU's is exact in float32.
    """
    out = torch.bfloat16 if q.is_cuda else torch.float32
    y = torch._scaled_mm(
        q, weight.T, scale_a=scales, scale_b=weight_scales.T, out_dtype=out, use_fast_accum=True
    )
    return y.to(dtype)


def has_amx() -> bool:
    """Whether the processor multiplies tiles of matrices; False if this PyTorch does not know."""
    try:
        return torch.cpu._is_amx_tile_supported()
    except AttributeError:
        return False


def has_avx512_bfloat16() -> bool:
    """Whether the processor multiplies vectors of bfloat16; False if this PyTorch does not know."""
    try:
        return torch.cpu._is_avx512_bf16_supported()
    except AttributeError:
        return False


def has_vnni() -> bool:
    """Whether the processor multiplies vectors of 8 bits; False if this PyTorch does not know."""
    try:
        return torch.cpu._is_vnni_supported()
    except AttributeError:
        return False


def is_amd() -> bool:
    """Whether the processor is AMD's; False if this PyTorch does not know."""
    try:
        return "AMD" in str(torch.cpu.get_capabilities().get("cpu_name"))
    except AttributeError:
        return False


def group_statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Compute each group's mean and 1/√(variance + eps), both (B, groups), of x (B,C,H,W)."""
    if not x.is_cpu:  # other kernels do not mix dtypes, and round what they return to x's
        parts = x.float().unflatten(1, (groups, -1))
        variance, mean = torch.var_mean(parts, dim=(2, 3, 4), correction=0)
        return mean, (variance + eps).rsqrt()
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    ones, zeros = (f(channels, device=x.device) for f in (torch.ones, torch.zeros))
    # They are a by-product of the kernel of the norm itself.
    _, mean, rstd = torch.native_group_norm(x, ones, zeros, len(x), channels, pixels, groups, eps)
    return mean, rstd


def silu_into(x: Tensor, out: Tensor) -> Tensor:
    """Write SiLU of x into ``out``."""
    return torch.ops.aten.silu.out(x, out=out)
