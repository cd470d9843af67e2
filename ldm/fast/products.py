"""Products of matrices by the faster of PyTorch's libraries for CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.fast import onednn


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x Wᵀ + b of one dtype on a CPU, without a gradient.

    In bfloat16 PyTorch takes oneDNN itself, in float32 MKL: on AMD's processors half as fast.
    """
    if x.dtype == torch.float32 and onednn.packs(x.dtype):
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            weight = weight.contiguous()  # or oneDNN takes a thousand times as long
        return onednn.plain_linear(x, weight, bias)
    return F.linear(x, weight, bias)
