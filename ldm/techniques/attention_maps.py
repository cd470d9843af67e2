"""Attention maps: where each word of a prompt looked, from cross-attention.

    with pipe.explain() as attention:
        picture = pipe("a red car", seed=1).images[0]
    for word, heat in attention.words():
        ...

If AND joins texts, or ``[a:b:0.5]`` changes them, each text that was used has maps of its own.

Source: Tang et al. 2022, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention":
the mean of the attention probabilities over steps, layers and heads, enlarged to one size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.layers import Attention, SpatialTransformer, TransformerBlock
from ldm.text.chunks import cut
from ldm.text.tokenizer import CLIPTokenizer
from ldm.unet import UNet

COARSEST = 4  # latent pixels along a side of a layer's pixel; DAAM leaves out coarser layers


def probabilities(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    """Compute softmax(QKᵀ/√d) (B, heads, N, M), float32 (Vaswani et al. 2017, eq. 1)."""
    q, k = (
        rearrange(y, "b n (h d) -> b h n d", h=attention.heads).float()
        for y in (attention.to_q(x), attention.to_k(context))
    )
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)


class AttentionMaps:
    """The maps of a U-Net's layers while it is watched, for each picture and text."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self._size = self._inner = (0, 0)  # of the latents; in the present transformer
        self._rows: list[int] = []  # rows of the next U-Net call that are not negative …
        self._keys: list[tuple[int, str]] = []  # … and (picture, text) of each
        # The sum of the maps of each (picture, text), and how many were added.
        self._sums: dict[tuple[int, str], tuple[Tensor, int]] = {}

    def texts(self, picture: int = 0) -> list[str]:
        """Return the texts used for a picture, in that order, without negative prompts.

        Raises ArgumentError if no such picture has been drawn.
        """
        if not self._sums:
            raise ArgumentError("no picture was drawn within explain(); draw one, then ask")
        texts = [text for mine, text in self._sums if mine == picture]
        if not texts:
            count = 1 + max(mine for mine, _ in self._sums)
            raise ArgumentError(f"picture is {picture}; {count} were drawn: they count from 0")
        return texts

    def maps(self, text: str | None = None, picture: int = 0) -> Tensor:
        """Return where each token of a text looked: (tokens, h, w), float32 on the CPU.

        It is the mean over the steps that used the text, at the size of the last latents; the sum
        over tokens is 1. ``text`` may be left out if the picture has only one. Raises
        ArgumentError for an unknown one.
        """
        texts = self.texts(picture)
        if text is None and len(texts) == 1:
            (text,) = texts
        if text not in texts:
            known = ", ".join(map(repr, texts))
            raise ArgumentError(
                f"text is {text!r}; expected one that picture {picture} has: {known}"
            )
        total, count = self._sums[picture, text]
        return (total / count).cpu()

    def words(self, text: str | None = None, picture: int = 0) -> list[tuple[str, Tensor]]:
        """Return each word of a text, in lower case, and its map (h, w), the mean over its tokens.

        None takes all texts, one after the other. Raises ArgumentError as ``maps``.
        """
        if text is None:
            return [pair for one in self.texts(picture) for pair in self.words(one, picture)]
        maps = self.maps(text, picture)
        ids = [index for chunk in cut(self.tokenizer, text) for index in chunk.ids]
        return [
            (word, maps[tokens].mean(dim=0))
            for word, tokens in self.tokenizer.words(ids)
            if any(letter.isalnum() or ord(letter) > 0x2000 for letter in word)  # not only signs
        ]

    def set_rows(self, rows: Sequence[tuple[int, str] | None]) -> None:
        """Set what the rows of the next U-Net call are: see ``ldm.denoiser.Listener``."""
        self._rows = [i for i, key in enumerate(rows) if key is not None]
        self._keys = [(key[0], key[1].strip()) for key in rows if key is not None]

    def _see_latents(self, unet: UNet, args: tuple[Any, ...]) -> None:
        self._size = tuple(args[0].shape[2:])

    def _see_size(self, transformer: SpatialTransformer, args: tuple[Any, ...]) -> None:
        self._inner = tuple(args[0].shape[2:])

    @torch.no_grad()
    def _see(self, attention: Attention, args: tuple[Any, ...]) -> None:
        if not self._rows or self._inner[0] * COARSEST < self._size[0]:
            return
        x, context = (part[self._rows] for part in args)
        mean = probabilities(attention, x, context).mean(dim=1)
        height, width = self._inner
        maps = self._enlarged(rearrange(mean, "b (h w) m -> b m h w", h=height, w=width))
        for key, new in zip(self._keys, maps, strict=True):
            total, count = self._sums.get(key, (torch.zeros_like(new), 0))
            if total.shape[1:] != new.shape[1:]:  # a second pass over a larger picture
                total = self._enlarged(total[None])[0]
            # In another call, the same text may be padded to another length.
            more = len(new) - len(total)
            total, new = _longer(total, more), _longer(new, -more)
            self._sums[key] = total + new, count + 1

    def _enlarged(self, maps: Tensor) -> Tensor:
        return F.interpolate(maps, size=self._size, mode="bilinear", align_corners=False)


def _longer(maps: Tensor, more: int) -> Tensor:
    return F.pad(maps, (0, 0, 0, 0, 0, max(more, 0)))


@contextlib.contextmanager
def watch_attention(unet: UNet, tokenizer: CLIPTokenizer) -> Iterator[AttentionMaps]:
    """Watch the U-Net draw; the pictures stay bit-identical.

    The caller of the U-Net must call ``set_rows`` before each call.
    """
    maps = AttentionMaps(tokenizer)
    handles = [unet.register_forward_pre_hook(maps._see_latents)]
    for module in unet.modules():
        if isinstance(module, SpatialTransformer):
            handles.append(module.register_forward_pre_hook(maps._see_size))
        if isinstance(module, TransformerBlock):
            handles.append(module.attn2.register_forward_pre_hook(maps._see))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
