"""Where each word of a prompt looked: the heat maps of cross-attention.

    with pipe.explain() as attention:
        picture = pipe("a red car", seed=1).images[0]
    for word, heat in attention.words("a red car"):
        ...

Source: Tang et al. 2022, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention":
the mean of the attention probabilities over steps, layers and heads, enlarged to one size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm.chunks import cut
from ldm.errors import ArgumentError
from ldm.layers import Attention, SpatialTransformer
from ldm.tokenizer import CLIPTokenizer
from ldm.unet import UNet

COARSEST = 4  # of the latents' pixels in one of the layer's: DAAM leaves out the layers below


def probabilities(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    """softmax(QKᵀ/√d) of a layer, (B, heads, N, M), float32: Vaswani et al. 2017, eq. 1."""
    q, k = (
        rearrange(y, "b n (h d) -> b h n d", h=attention.heads).float()
        for y in (attention.to_q(x), attention.to_k(context))
    )
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)


class AttentionMaps:
    """What a U-Net's layers looked at while it was watched."""

    def __init__(self, tokenizer: CLIPTokenizer, pictures: int) -> None:
        self.tokenizer, self.pictures = tokenizer, pictures
        self._size = self._inner = (0, 0)  # of the latents; in the present transformer
        self._sum: Tensor | None = None
        self._count = 0

    @property
    def maps(self) -> Tensor:
        """The mean attention (pictures, tokens, h, w), float32 on the CPU: over tokens it is 1.

        Raises ArgumentError where nothing has been drawn.
        """
        if self._sum is None:
            raise ArgumentError("no picture was drawn within explain(); draw one, then ask")
        return (self._sum / self._count).cpu()

    def words(self, prompt: str, picture: int = 0) -> list[tuple[str, Tensor]]:
        """Each word of the prompt, in lower case, and its map (h, w): the mean over its tokens."""
        maps = self.maps[picture]
        ids = [index for chunk in cut(self.tokenizer, prompt) for index in chunk.ids]
        return [
            (word, maps[tokens].mean(dim=0))
            for word, tokens in self.tokenizer.words(ids)
            if any(letter.isalnum() or ord(letter) > 0x2000 for letter in word)  # no marks alone
        ]

    def _see_latents(self, unet: UNet, args: tuple[Any, ...]) -> None:
        self._size = tuple(args[0].shape[2:])

    def _see_size(self, transformer: SpatialTransformer, args: tuple[Any, ...]) -> None:
        self._inner = tuple(args[0].shape[2:])

    @torch.no_grad()
    def _see(self, attention: Attention, args: tuple[Any, ...]) -> None:
        if self._inner[0] * COARSEST < self._size[0]:
            return
        # With guidance, the half without the text comes first.
        x, context = (part[-self.pictures :] for part in args)
        if len(x) != self.pictures:
            raise ArgumentError(
                f"explain() was told of {self.pictures} pictures, but {len(x)} are drawn"
            )
        mean = probabilities(attention, x, context).mean(dim=1)
        height, width = self._inner
        maps = rearrange(mean, "b (h w) m -> b m h w", h=height, w=width)
        maps = F.interpolate(maps, size=self._size, mode="bilinear", align_corners=False)
        self._sum = maps if self._sum is None else self._sum + maps
        self._count += 1


@contextlib.contextmanager
def explain(unet: UNet, tokenizer: CLIPTokenizer, pictures: int) -> Iterator[AttentionMaps]:
    """Watch the U-Net draw ``pictures`` pictures at once; they come out the same, to the bit."""
    maps = AttentionMaps(tokenizer, pictures)
    handles = [unet.register_forward_pre_hook(maps._see_latents)]
    for module in unet.modules():
        if isinstance(module, SpatialTransformer):
            handles.append(module.register_forward_pre_hook(maps._see_size))
            handles += [
                block.attn2.register_forward_pre_hook(maps._see)
                for block in module.transformer_blocks
            ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
