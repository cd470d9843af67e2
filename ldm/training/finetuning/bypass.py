"""A linear layer with a LoRA beside it as one operation on CPUs: y = W x + b + s·up(down x).

It adds in place, and computes the gradients of x by both ways into one tensor. Of its inputs it
keeps x alone, which the layers that read the same x (of an attention q, k and v) keep together.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ldm.fast import frozen
from ldm.fast.products import product


def with_bypass(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """Compute y (…, out) of x (…, in). weight and bias are frozen, down (r,in), up (out,r) learn.

    It computes in autocast's dtype where that is on, else in the weight's.
    """
    dtype = frozen.computed_in(x, weight)
    back = dtype if torch.is_autocast_enabled(x.device.type) else x.dtype
    bias = None if bias is None else bias.to(dtype)
    x, weight, down, up = (part.to(dtype) for part in (x, weight, down, up))
    if x.is_cpu and x.numel() and not weight.requires_grad:
        return cast("Tensor", _Bypass.apply(x.contiguous(), weight, bias, down, up, scale)).to(back)
    change = F.linear(F.linear(x, down), up)
    return torch.add(F.linear(x, weight, bias), change, alpha=scale).to(back)


class _Bypass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        hidden = product(x, down).flatten(0, -2)
        ctx.save_for_backward(x, weight, down, up, hidden)
        ctx.scale = scale
        y = product(x, weight, bias)
        y.view(-1, len(weight)).addmm_(hidden, up.t(), alpha=scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, hidden = ctx.saved_tensors
        grad = grad.reshape(-1, len(weight))
        hidden_grad = product(grad, up.t()).mul_(ctx.scale)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = product(grad, weight.t())
            x_grad = x_grad.addmm_(hidden_grad, down).view(x.shape)
        down_grad = hidden_grad.t() @ x.reshape(-1, x.shape[-1])
        up_grad = (grad.t() @ hidden).mul_(ctx.scale)
        return x_grad, None, None, down_grad, up_grad, None
