"""The blocks that the VAE and the U-Net are built from, named as in diffusers checkpoints.

Shapes: B batch, C channels, H and W spatial size, N tokens, D token width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def timestep_embedding(
    t: Tensor, dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0
) -> Tensor:
    """Compute the sinusoidal embedding of diffusion times: (B,) → (B, dim), float32.

    Source: Vaswani et al. 2017, section 3.5, with wavelengths from 2π to 10000·2π.
    Sines come first, as in the paper, unless ``flip_sin_to_cos``. ``dim`` must be even.
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(exponent / (half - freq_shift))
    halves = [angles.sin(), angles.cos()]
    return torch.cat(halves[::-1] if flip_sin_to_cos else halves, dim=-1)


class TimestepEmbedding(nn.Module):
    """Two-layer network on the sinusoidal embedding: (B, C) → (B, 4C) in Stable Diffusion.

    With ``condition_dim``, it also reads a condition (B, condition_dim).
    """

    def __init__(
        self, in_channels: int, time_embed_dim: int, condition_dim: int | None = None
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.cond_proj = (
            None if condition_dim is None else nn.Linear(condition_dim, in_channels, bias=False)
        )
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.cond_proj is not None and condition is not None:
            x = x + self.cond_proj(condition)
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock(nn.Module):
    """Pre-activation residual block: (B,Cin,H,W), (B,T)? → (B,Cout,H,W).

    Source: Ho et al. 2020, appendix B. The time is added between the convolutions; with
    ``scale_shift`` it scales and shifts the normalised values instead: adaptive group normalisation
    (Dhariwal & Nichol 2021, section 3.1). With ``resample`` "down" or "up" both the block and its
    shortcut halve or double H and W (Brock et al. 2019, figure 15).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        eps: float,
        temb_channels: int | None = None,
        scale_shift: bool = False,
        dropout: float = 0.0,  # probability that a value is set to 0 in training
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = (
            None
            if temb_channels is None
            else nn.Linear(temb_channels, 2 * out_channels if scale_shift else out_channels)
        )
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(
        self, x: Tensor, temb: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Apply the block.

        temb: the activated time embedding; None in the VAE, which has no time.
        size: (height, width) that "up" enlarges to; None doubles both.
        """
        h = self.activate(self.norm1, x)
        if self.resample == "down":  # as a strided convolution halves odd sizes: 7 → 4
            x, h = (F.avg_pool2d(y, 2, ceil_mode=True) for y in (x, h))
        elif self.resample == "up":
            x, h = enlarge(x, size), enlarge(h, size)
        h = self.conv1(h)
        time = None
        if self.time_emb_proj is not None:
            time = self.time_emb_proj(temb)[:, :, None, None]
        if time is not None and self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = F.silu(self.norm2(h) * (1 + scale) + shift)
        else:
            if time is not None:
                h = h + time
            h = self.activate(self.norm2, h)
        h = self.conv2(self.dropout(h))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    def activate(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Normalise and activate what a convolution reads."""
        return F.silu(norm(x))


class DotProductAttention(nn.Module):
    """softmax(q kᵀ / √d) v (Vaswani et al. 2017, eq. 1): (B,H,N,d) and twice (B,H,M,d) → like q."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class KeysValues(NamedTuple):
    """What a cross-attention reads beside the text: a picture (Ye et al. 2023, eq. 5)."""

    keys: Tensor  # (B,H,M,d)
    values: Tensor  # (B,H,M,d), times the picture's scale: attention is linear in them
    mask: Tensor | None = None  # (1,N,1): where on the feature map the picture is read


class Context(NamedTuple):
    """A text for cross-attention, and pictures beside it for some of the transformer blocks."""

    text: Tensor  # (B,M,Dc)
    pictures: Mapping[nn.Module, Sequence[KeysValues]]


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2); subclasses choose its inputs.

    ``out_dim`` None: the output has D channels, as x has.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,
        bias: bool = False,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=bias)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=bias)
        self.attend = DotProductAttention()
        self.to_out = nn.ModuleList([nn.Linear(dim, out_dim or dim)])

    def attend_to(self, x: Tensor, context: Tensor, pictures: Sequence[KeysValues] = ()) -> Tensor:
        """Let x (B,N,D) look at context (B,M,Dc), and at pictures: → (B,N,out_dim)."""
        return self.read(*self.queries_keys_values(x, context), pictures)

    def queries_keys_values(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q of x (B,N,D), and K and V of context (B,M,Dc): (B,H,N,d) and twice (B,H,M,d)."""
        q, k, v = (
            rearrange(y, "b n (h d) -> b h n d", h=self.heads)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return q, k, v

    def read(self, q: Tensor, k: Tensor, v: Tensor, pictures: Sequence[KeysValues]) -> Tensor:
        """Attend to keys and values, add what pictures give (Ye et al. 2023, eq. 5), project."""
        y = self.attend(q, k, v)
        for picture in pictures:
            more = self.attend(q, picture.keys, picture.values)
            y = y + (more if picture.mask is None else more * picture.mask)
        return self.project(y)

    def project(self, y: Tensor) -> Tensor:
        """Join the heads and apply the last layer: (B,H,N,d) → (B,N,out_dim)."""
        return self.to_out[0](rearrange(y, "b h n d -> b n (h d)"))


class Attention(MultiHeadAttention):
    """Cross-attention of x (B,N,D) to context (B,M,Dc); self-attention without: → (B,N,D)."""

    def forward(
        self, x: Tensor, context: Tensor | None = None, pictures: Sequence[KeysValues] = ()
    ) -> Tensor:
        return self.attend_to(x, x if context is None else context, pictures)


class SpatialAttention(MultiHeadAttention):
    """Self-attention over all pixels, normalised, with residual: (B,C,H,W) → (B,C,H,W).

    It is in the middle of the VAE, and in U-Nets without text (Ho et al. 2020, appendix B).
    ``groups`` None: not normalised, as in the middle of some of diffusers' U-Nets.
    """

    def __init__(self, channels: int, groups: int | None, eps: float, heads: int = 1) -> None:
        super().__init__(channels, heads, bias=True)
        self.group_norm = nn.Identity() if groups is None else nn.GroupNorm(groups, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        tokens = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        return x + rearrange(self.attend_to(tokens, tokens), "b (h w) c -> b c h w", h=height)


class GEGLU(nn.Module):
    """Gated linear unit (Shazeer 2020, eq. 6): (B,N,D) → (B,N,inner)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU and a linear layer; ``net.1`` stands for the original's dropout, so that names fit."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward (Rombach et al. 2022, figure 3).

    With ``only_cross``, the first attention looks at the text, too.
    """

    def __init__(self, dim: int, heads: int, context_dim: int, only_cross: bool = False) -> None:
        super().__init__()
        self.only_cross = only_cross
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads, context_dim if only_cross else None)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor, pictures: Sequence[KeysValues] = ()) -> Tensor:
        x = x + self.attn1(self.norm1(x), context if self.only_cross else None)
        x = x + self.attn2(self.norm2(x), context, pictures=pictures)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map: (B,C,H,W), (B,M,Dc) → (B,C,H,W)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        depth: int,
        context_dim: int,
        groups: int,
        linear: bool,
        only_cross: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.linear = linear
        self.proj_in = nn.Linear(dim, dim) if linear else nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(dim, heads, context_dim, only_cross) for _ in range(depth)
        )
        self.proj_out = nn.Linear(dim, dim) if linear else nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, context: Tensor | Context) -> Tensor:
        text, pictures = context if isinstance(context, Context) else (context, {})
        height, h = x.shape[2], self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = rearrange(h, "b c h w -> b (h w) c")
        if self.linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, text, pictures.get(block, ()))
        if self.linear:
            h = self.proj_out(h)
        h = rearrange(h, "b (h w) c -> b c h w", h=height)
        return x + (h if self.linear else self.proj_out(h))


class Downsample(nn.Module):
    """Halve H and W with a strided convolution.

    ``padding`` 1 pads all around (U-Net), 0 right and below only (VAE).
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def pad(self, x: Tensor) -> Tensor:
        """Add the padding that the convolution does not: a column at the right and a row below."""
        if self.conv.padding[0] != 0:
            return x
        circular = self.conv.padding_mode == "circular"
        return F.pad(x, (0, 1, 0, 1), mode="circular" if circular else "constant")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))


def enlarge(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Enlarge (B,C,H,W) to ``size`` (default: double) by nearest neighbour."""
    return F.interpolate(x, size=size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest")


class Upsample(nn.Module):
    """Enlarge to ``size`` (default: double) by nearest neighbour, then smooth by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(enlarge(x, size))
