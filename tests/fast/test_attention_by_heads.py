"""Attention head by head: values and gradients of the formula, and nothing kept but its inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.fast.attention_by_heads import AttentionByHeads
from ldm.fast.cpu import MANY_PAIRS, trainable_attention


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


def inputs(tokens: int, others: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """As layers make them: the heads of a token lie side by side."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn((2, n, 3, 8), generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for n in (tokens, others, others)
    ]


@pytest.mark.parametrize("others", [40, 7])
@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
def test_values_and_gradients_are_the_formulas(
    dtype: torch.dtype, near: float, others: int
) -> None:
    given = inputs(40, others, dtype)
    exact = [x.detach().float().requires_grad_() for x in given]
    found, expected = AttentionByHeads.apply(*given), formula(*exact)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    pairs = zip(
        (found, *torch.autograd.grad(found, given, grad.to(dtype))),
        (expected, *torch.autograd.grad(expected, exact, grad)),
        strict=True,
    )
    for mine, plain in pairs:
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.float(), plain, rtol=0, atol=near)


@pytest.mark.parametrize("tokens", [16, 256])
def test_many_tokens_keep_no_matrix(tokens: int) -> None:
    largest = 0

    def see(tensor: Tensor) -> Any:
        nonlocal largest
        largest = max(largest, tensor.numel())

    given = inputs(tokens, tokens)
    with torch.autograd.graph.saved_tensors_hooks(see, lambda _: None):
        trainable_attention(*given)
    assert (largest == given[0].numel()) == (tokens**2 >= MANY_PAIRS)
