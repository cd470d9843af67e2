"""Attention to a text whose keys and values are computed once, not at every step.

The text is the same through all steps, so K = W_K τ and V = W_V τ (Rombach et al. 2022, eq. 3) are
too: of the small built-in model they are 4 % of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ldm.fast.cache import READ, Caching, marks, same_marks
from ldm.fast.replace import Replacement
from ldm.layers import Attention, KeysValues


class KeysAndValues:
    """K and V, (B, heads, M, d), and what they were computed from."""

    def __init__(self, attention: Attention, context: Tensor) -> None:
        self.keys, self.values = self._compute(attention, context)

    def _compute(self, attention: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
        self.context, self.version = context, context._version
        layers = (attention.to_k, attention.to_v)
        keys, values = (
            rearrange(layer(context), "b m (h d) -> b h m d", h=attention.heads) for layer in layers
        )
        self.weights = [marks(layer) for layer in layers]
        return keys, values

    def renew(self, attention: Attention) -> None:
        """Compute them again where they lie, if the text or the weights have changed in place."""
        if not self.are_of(attention, self.context):
            for old, new in zip(
                (self.keys, self.values), self._compute(attention, self.context), strict=True
            ):
                old.copy_(new)

    def are_of(self, attention: Attention, context: Tensor) -> bool:
        """Whether neither the text nor the weights have changed since."""
        return (
            context is self.context
            and context._version == self.version
            and same_marks(self.weights[0], marks(attention.to_k))
            and same_marks(self.weights[1], marks(attention.to_v))
        )


class CachedAttention(Caching, Replacement, Attention):
    """``Attention`` that keeps K and V for as long as the text and the weights stay."""

    cached: KeysAndValues | None = None

    def forward(
        self, x: Tensor, context: Tensor | None = None, pictures: Sequence[KeysValues] = ()
    ) -> Tensor:
        if context is None or torch.is_grad_enabled() or context.is_inference():
            return super().forward(x, context, pictures)
        text = self.cached
        if text is None or not text.are_of(self, context):
            text = self.cached = KeysAndValues(self, context)
        read = READ.get()
        if read is not None:
            read.append((self, text))
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        return self.read(q, text.keys, text.values, pictures)
