"""From a picture's CLIP states to the tokens that cross-attention reads.

Source: Ye et al. 2023, "IP-Adapter: Text compatible image prompt adapter for text-to-image
diffusion models", section 3.2.1; and the authors' code (tencent-ailab/IP-Adapter), whose names of
parameters these modules have.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.config import IPAdapterConfig
from ldm.config.ip_adapter import HEAD_DIM


class ImageProjection(nn.Module):
    """Linear layer and norm: a picture's embedding (B,P) → tokens (B,N,D)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.tokens, width = config.num_tokens, config.cross_attention_dim
        self.proj = nn.Linear(config.image_width, self.tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.norm(rearrange(self.proj(embedding), "b (n d) -> b n d", n=self.tokens))


class IPAdapterFullImageProjection(nn.Module):
    """MLP on each patch's state: (B,N,P) → as many tokens (B,N,D)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        width = config.image_width
        self.proj = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, config.cross_attention_dim),
            nn.LayerNorm(config.cross_attention_dim),
        )

    def forward(self, states: Tensor) -> Tensor:
        return self.proj(states)


class PerceiverAttention(nn.Module):
    """Attention of queries to the states and to themselves (Alayrac et al. 2022, section 3.1.1)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * HEAD_DIM
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, states: Tensor, queries: Tensor) -> Tensor:
        queries = self.norm2(queries)
        k, v = self.to_kv(torch.cat([self.norm1(states), queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (
            rearrange(y, "b n (h d) -> b h n d", h=self.heads) for y in (self.to_q(queries), k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(y, "b h n d -> b n (h d)"))


class IPAdapterPlusImageProjection(nn.Module):
    """Resampler: all patches' states (B,P',P) → learnt queries that read them, tokens (B,N,D)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        dim, width = config.hidden_size, config.cross_attention_dim
        self.latents = nn.Parameter(torch.randn(1, config.num_tokens, dim) * dim**-0.5)
        self.proj_in, self.proj_out = nn.Linear(config.image_width, dim), nn.Linear(dim, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, config.num_heads), feed_forward(dim)])
            for _ in range(config.num_layers)
        )

    def forward(self, states: Tensor) -> Tensor:
        queries, states = self.latents.expand(len(states), -1, -1), self.proj_in(states)
        for layer in self.layers:
            attention, feed = cast(nn.ModuleList, layer)
            queries = queries + attention(states, queries)
            queries = queries + feed(queries)
        return self.norm_out(self.proj_out(queries))


def feed_forward(dim: int) -> nn.Sequential:
    """Make the MLP of a resampler's layer."""
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, 4 * dim, bias=False),
        nn.GELU(),
        nn.Linear(4 * dim, dim, bias=False),
    )


PROJECTIONS: dict[str, type[nn.Module]] = {
    "base": ImageProjection,
    "plus": IPAdapterPlusImageProjection,
    "full": IPAdapterFullImageProjection,
}
