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
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import ArgumentError
from ldm.fast.replace import view, with_children, with_hook
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


Sums = dict[tuple[int, str], tuple[Tensor, int]]  # of each (picture, text), and of how many maps


class AttentionMaps:
    """The maps of a U-Net's layers while it is watched, for each picture and text."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self.watches: list[Watch] = []  # one for each run

    @property
    def _sums(self) -> Sums:
        """The sums of all runs."""
        total: Sums = {}
        for watch in list(self.watches):
            for key, (maps, count) in list(watch.sums.items()):
                add(total, key, maps, count, watch.size)
        return total

    def texts(self, picture: int = 0) -> list[str]:
        """Return the texts used for a picture, in that order, without negative prompts.

        Raises ArgumentError if no such picture has been drawn.
        """
        sums = self._sums
        if not sums:
            raise ArgumentError("no picture was drawn within explain(); draw one, then ask")
        texts = [text for mine, text in sums if mine == picture]
        if not texts:
            count = 1 + max(mine for mine, _ in sums)
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


class Watch:
    """The maps of one run, which calls ``unet``, a view of the model's U-Net.

    Attributes:
        size: (h, w) of the last latents.
    """

    def __init__(self, unet: UNet) -> None:
        """Make the view. The caller of the U-Net must call ``set_rows`` before each call."""
        self.size = self._inner = (0, 0)  # … of the present transformer
        self._rows: list[int] = []  # rows of the next U-Net call that are not negative …
        self._keys: list[tuple[int, str]] = []  # … and (picture, text) of each
        self.sums: Sums = {}

        def exchange(layer: nn.Module) -> nn.Module:
            if isinstance(layer, SpatialTransformer):
                return with_hook(layer, self._see_size, before=True)
            if isinstance(layer, TransformerBlock):
                return with_children(layer, attn2=with_hook(layer.attn2, self._see, before=True))
            return layer

        self.unet = with_hook(view(unet, exchange), self._see_latents, before=True)

    def set_rows(self, rows: Sequence[tuple[int, str] | None]) -> None:
        """Set what the rows of the next U-Net call are: see ``ldm.denoiser.Listener``."""
        self._rows = [i for i, key in enumerate(rows) if key is not None]
        self._keys = [(key[0], key[1].strip()) for key in rows if key is not None]

    def _see_latents(self, unet: UNet, args: tuple[Any, ...]) -> None:
        self.size = tuple(args[0].shape[2:])

    def _see_size(self, transformer: SpatialTransformer, args: tuple[Any, ...]) -> None:
        self._inner = tuple(args[0].shape[2:])

    @torch.no_grad()
    def _see(self, attention: Attention, args: tuple[Any, ...]) -> None:
        if not self._rows or self._inner[0] * COARSEST < self.size[0]:
            return
        x, context = (part[self._rows] for part in args)
        mean = probabilities(attention, x, context).mean(dim=1)
        height, width = self._inner
        maps = rearrange(mean, "b (h w) m -> b m h w", h=height, w=width)
        for key, new in zip(self._keys, enlarged(maps, self.size), strict=True):
            add(self.sums, key, new, 1, self.size)


def add(sums: Sums, key: tuple[int, str], maps: Tensor, count: int, size: tuple[int, int]) -> None:
    """Add the sum of ``count`` maps (tokens, h, w) of a size to those of the same text."""
    total, before = sums.get(key, (torch.zeros_like(maps), 0))
    if total.shape[1:] != maps.shape[1:]:  # a second pass over a larger picture
        total = enlarged(total[None], size)[0]
    # In another call, the same text may be padded to another length.
    more = len(maps) - len(total)
    sums[key] = longer(total, more) + longer(maps, -more), before + count


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge maps (B, C, h, w) to another size."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def longer(maps: Tensor, more: int) -> Tensor:
    """Append maps of zeros for so many further tokens, if any."""
    return F.pad(maps, (0, 0, 0, 0, 0, max(more, 0)))


# The U-Nets that are watched here, and the maps of each.
WATCHED: ContextVar[tuple[tuple[UNet, AttentionMaps], ...]] = ContextVar("WATCHED", default=())


@contextlib.contextmanager
def watch_attention(unet: UNet, tokenizer: CLIPTokenizer) -> Iterator[AttentionMaps]:
    """Watch the runs of a U-Net that this thread begins inside; pictures stay bit-identical."""
    maps = AttentionMaps(tokenizer)
    token = WATCHED.set((*WATCHED.get(), (unet, maps)))
    try:
        yield maps
    finally:
        WATCHED.reset(token)


def watches(unet: UNet, shown: UNet) -> list[Watch]:
    """Begin to watch a run for all that watch a U-Net here. shown: the view of it that is run.

    The last one's view is what the run must call.
    """
    found: list[Watch] = []
    for watched, maps in WATCHED.get():
        if watched is unet:
            found.append(Watch(found[-1].unet if found else shown))
            maps.watches.append(found[-1])
    return found
