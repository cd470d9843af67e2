"""Attention in training on a CPU head by head, which keeps no matrix of all pairs of tokens.

Of 1,024 tokens a head's matrix fits into the processor's cache, that of all heads does not. The
backward pass computes it again: together they take a third of the time of batched products in
float32, as long as they do in bfloat16, and less than the fused kernel in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ldm.fast.products import product


class AttentionByHeads(torch.autograd.Function):
    """softmax(q kᵀ / √d) v (Vaswani et al. 2017, eq. 1): (B,H,N,d) and twice (B,H,M,d) → like q."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, known: Sequence[Tensor] = ()) -> Tensor:
        """Return ``known``'s output, if there is one, else compute it."""
        if known:
            y = known[0].detach()
        else:
            # The heads of a token lie side by side, as the layer behind reads them.
            y = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
            for b, h in heads(q):
                y[b, h] = product(probabilities(scaled(q[b, h]), k[b, h]), v[b, h].t())
        ctx.save_for_backward(q, k, v, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y = ctx.saved_tensors
        q_grad, k_grad, v_grad = (torch.empty_like(x) for x in (q, k, v))
        for b, h in heads(q):
            q_h, k_h, v_h, g = (x[b, h].contiguous() for x in (q, k, v, grad))
            q_h = scaled(q_h)
            p = probabilities(q_h, k_h)
            v_grad[b, h] = product(g.t().contiguous(), p.t()).t()
            # Of the softmax, whose Jacobian is diag(p) − p pᵀ: with s = v g, pᵀ s is y · g.
            s = product(g, v_h)
            s.sub_((g * y[b, h]).sum(dim=-1, keepdim=True)).mul_(p)
            q_grad[b, h] = product(s, scaled(k_h).t())
            k_grad[b, h] = product(q_h.t().contiguous(), s.t()).t()
        return q_grad, k_grad, v_grad, None


def heads(q: Tensor) -> list[tuple[int, int]]:
    """List the (row, head) of queries (B,H,N,d)."""
    return [(b, h) for b in range(q.shape[0]) for h in range(q.shape[1])]


def scaled(x: Tensor) -> Tensor:
    """Return x / √d of one head, (N,d)."""
    return x * x.shape[-1] ** -0.5


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """Compute softmax(q kᵀ) of one head: (N,d), already scaled, and (M,d) → (N,M)."""
    with torch.autocast("cpu", enabled=False):  # it would compute the softmax in float32
        return product(q, k).softmax(dim=-1)
