"""A LoRA beside a linear layer as one operation: the formula's values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.training.finetuning.bypass import with_bypass

SCALE = 0.7


def formula(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
    return F.linear(x, weight, bias) + SCALE * F.linear(F.linear(x, down), up)


def tensors(bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, down, up = draw(5, 2, 8).transpose(0, 1), draw(3, 8), draw(12, 3)
    learnt = [value.requires_grad_() for value in (x, down, up)]
    return learnt[0], draw(12, 8), draw(12) if bias else None, learnt[1], learnt[2]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reads", ["gradient", "no gradient"])
def test_values_and_gradients_are_the_formulas(bias: bool, reads: str) -> None:
    x, weight, b, down, up = tensors(bias)
    if reads == "no gradient":  # as the text's keys and values
        x = x.detach()
    learnt = [value for value in (x, down, up) if value.requires_grad]
    grad = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    mine, plain = with_bypass(x, weight, b, down, up, SCALE), formula(x, weight, b, down, up)
    torch.testing.assert_close(mine, plain, rtol=0, atol=1e-5)
    pairs = zip(
        torch.autograd.grad(mine, learnt, grad),
        torch.autograd.grad(plain, learnt, grad),
        strict=True,
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_in_autocast_it_computes_in_bfloat16_and_learns_in_float32() -> None:
    x, weight, b, down, up = tensors(bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        mine = with_bypass(x, weight.bfloat16(), b, down, up, SCALE)
        plain = formula(x, weight, b, down, up)
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, plain.bfloat16(), rtol=0.05, atol=0.05)
    grads = torch.autograd.grad(mine.float().square().mean(), (x, down, up))
    assert all(grad.dtype == torch.float32 for grad in grads)
    outside = with_bypass(x, weight.bfloat16(), b, down, up, SCALE)
    assert outside.dtype == x.dtype


def test_layers_that_read_the_same_keep_it_once() -> None:
    x, weight, b, down, up = tensors(bias=True)
    x = x.detach().contiguous().requires_grad_()
    kept: set[int] = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.add(tensor.data_ptr()) if tensor.numel() == x.numel() else None,
        lambda _: None,
    ):
        outputs = [with_bypass(x, weight, b, down, up, SCALE) for _ in range(3)]
    assert len(outputs) == 3 and kept == {x.data_ptr()}
