"""Attention alone: our blocks against PyTorch's fused kernel, at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from ldm.fast.attention_by_blocks import attention_by_blocks
from tools.bench.race import Race
from tools.bench.sizes import at

SHAPES = {  # heads, tokens, width of a head
    "40": (8, 4096, 40),  # Stable Diffusion 1.5 at 512 px
    "80": (8, 1024, 80),
    "160": (8, 256, 160),
    "64": (10, 4096, 64),  # XL at 1024 px, and 2.x
    "512": (1, 4096, 512),  # the VAE
}


def attention(heads: int, tokens: int, width: int, dtype: torch.dtype, aim: float) -> Race:
    """Race one self-attention of one picture."""
    tokens = at(tokens, 256)
    generator = torch.Generator().manual_seed(0)
    shape = (1, tokens, heads, width)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for _ in range(3))
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    ours, theirs = (
        partial(f, q, k, v) for f in (attention_by_blocks, F.scaled_dot_product_attention)
    )

    def check() -> tuple[float, float]:
        error = (ours().float() - exact).norm() / exact.norm()
        return error.item(), 1e-5 if dtype == torch.float32 else 0.008

    def rates() -> dict[str, str]:
        return {"operations": f"{4 * heads * tokens**2 * width / 1e9:.2g} GFLOP"}

    name = str(dtype).removeprefix("torch.")
    what = f"attention, {heads} heads of {width}, {tokens} tokens, {name}, s"
    kernel = "PyTorch's kernel"
    return Race(what, ours, theirs, check, aim, kernel, turns=5, runs=3, more=rates)


SECTIONS: dict[str, Callable[[], Race]] = {
    f"attention-{name}{suffix}": partial(attention, *shape, dtype, aim)
    for suffix, dtype, aim in (("", torch.bfloat16, 1.5), ("-fp32", torch.float32, 1.1))
    for name, shape in SHAPES.items()
}
