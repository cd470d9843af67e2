"""Attention on a CPU as products of blocks of queries, head by head.

Where bfloat16 is multiplied in vectors (avx512_bf16), PyTorch's fused kernel has 75 to 100 GFLOP/s
a core, oneDNN's products 500, and these blocks 170 to 300; in float32 on AMD's processors 90
against 130. `tools.bench --only attention` measures it. The scores of a block fit into the
processor's cache. They are rounded to the queries' dtype, as every activation is.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ldm.fast import onednn
from ldm.fast.cpu import TrainableAttention
from ldm.fast.products import product
from ldm.fast.replace import Replacement

MANY_KEYS = 256  # from which on blocks are faster
BLOCK = 1 << 21  # scores of a block: 4 MB
MOST_ROWS = 512


def attention_by_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q kᵀ / √d) v (Vaswani et al. 2017, eq. 1): (B,H,N,d), twice (B,H,M,d).

    Returns a tensor like q, whose heads lie side by side in memory, as the next layer reads them.
    """
    batch, heads, queries, width = q.shape
    rows = max(1, min(MOST_ROWS, queries, BLOCK // k.shape[2]))
    y = q.new_empty(batch, queries, heads, v.shape[3]).transpose(1, 2)
    # oneDNN's products, as those of ``product``, are written into one memory in bfloat16.
    scores = q.new_empty(rows, k.shape[2]) if q.dtype == torch.bfloat16 else None
    for b in range(batch):
        for h in range(heads):
            scaled = q[b, h] * width**-0.5  # of fewer values than the scores
            k_h, v_h = k[b, h].contiguous(), v[b, h].t().contiguous()
            for start in range(0, queries, rows):
                part = scaled[start : start + rows]
                if scores is None:
                    s = product(part, k_h)
                else:
                    s = torch.mm(part, k_h.t(), out=scores[: len(part)])
                y[b, h, start : start + rows] = product(torch.softmax(s, -1, out=s), v_h)
    return y


class BlockwiseAttention(Replacement, TrainableAttention):
    """``DotProductAttention`` by `attention_by_blocks`, where that is faster."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if fits(q, k):
            return attention_by_blocks(q, k, v)
        return super().forward(q, k, v)


def fits(q: Tensor, k: Tensor) -> bool:
    """Whether blocks are faster: of many keys, on a CPU whose fused kernel is slow."""
    return (
        q.is_cpu
        and k.shape[2] >= MANY_KEYS
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and slow_kernel(q.dtype)
    )


@functools.cache
def slow_kernel(dtype: torch.dtype) -> bool:
    """Whether the fused kernel is slower than oneDNN's products here.

    It is in bfloat16 without AMX, and in float32 on AMD's processors, as MKL's products are.
    """
    if dtype == torch.bfloat16:
        return onednn.packs(dtype) and not onednn.has_amx()
    return dtype == torch.float32 and onednn.packs(dtype) and onednn.is_amd()
