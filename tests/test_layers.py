"""Attention while learning on a CPU is PyTorch's kernel, in values and gradients; odd shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ldm.fast.cpu import ExactDownsample, trainable_attention
from tests.helpers.networks import difference


@pytest.mark.parametrize("shape", [(2, 3, 5, 7, 16), (1, 1, 9, 77, 56), (3, 2, 1, 4, 8)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 0.06)])
def test_plain_products_are_the_kernels(
    shape: tuple[int, ...], dtype: torch.dtype, bound: float
) -> None:
    """bf16 is held against float32's result, which the kernel, too, is 0.03 away from."""
    batch, heads, n, m, d = shape
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, heads, rows, d, generator=generator) for rows in (n, m, m)]
    grad = torch.randn(inputs[0].shape, generator=generator)
    results = []
    for kernel, kind in (
        (trainable_attention, dtype),
        (F.scaled_dot_product_attention, torch.float32),
    ):
        leaves = [one.to(kind).requires_grad_() for one in inputs]
        out = kernel(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, grad.to(kind))])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        assert float((ours - theirs).detach().abs().max()) <= bound


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_one_column_of_bfloat16_is_right(padding: int, around: bool) -> None:
    """oneDNN's convolution, with AMX, reads past the end of those of five rows and more."""
    layer = ExactDownsample(16, padding)
    layer.conv.padding_mode = "circular" if around else "zeros"
    for height in range(2, 24):
        for width in range(1 + max(around, 1 - padding), 5):
            x = torch.randn(2, 16, height, width, generator=torch.Generator().manual_seed(height))
            want = layer.float()(x)
            torch.full((1 << 16,), torch.nan)  # what may lie there
            got = layer.bfloat16()(x.bfloat16())
            assert got.dtype == torch.bfloat16
            assert difference(got.float(), want) < 0.05
