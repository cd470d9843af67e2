"""Style-aligned pictures: all pictures of a batch share the self-attention of the first.

    pipe(["a cat", "a boat"], style_aligned=True, seed=1)

Source: Hertz, Voynov, Fruchter & Cohen-Or 2024, "Style aligned image generation via shared
attention", section 3.2, with the settings of the authors' demos: queries and keys are normalised,
the normalisations of groups and layers are not shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.denoiser import UNetCall
from ldm.errors import ArgumentError
from ldm.fast.replace import with_state_of
from ldm.layers import Attention, KeysValues
from ldm.scheduler import Level
from ldm.techniques.self_attention import (
    Moments,
    adain,
    replace_self_attention,
)
from ldm.text.conditioning import Prompted
from ldm.unet import UNet

EPS = 1e-5  # of the authors' code, beside the variance


class AlignedRows:
    """Which row of the present U-Net call each row is aligned with."""

    first: Tensor  # (rows,), int64


class AlignedAttention(Attention):
    """Self-attention to a row's own pixels and to those of the first row (eq. 3 to 5)."""

    rows: AlignedRows

    def forward(
        self, x: Tensor, context: Tensor | None = None, pictures: Sequence[KeysValues] = ()
    ) -> Tensor:
        first = self.rows.first
        q, k, v = self.queries_keys_values(x, x)
        q, k = aligned(q, first), aligned(k, first)
        k, v = (torch.cat([y, y[first]], dim=2) for y in (k, v))
        return self.project(self.attend(q, k, v))


def aligned(y: Tensor, first: Tensor) -> Tensor:
    """Give queries or keys (B, heads, N, d) the moments over N of those of ``first`` (B,).

    Source: eq. 4.
    """
    pixels = y.shape[2]
    variance, mean = torch.var_mean(y, dim=2, keepdim=True, correction=min(1, pixels - 1))
    moments = Moments(mean, (variance + EPS).sqrt())
    return adain(y, moments, moments.of_rows(first))


class StyleAligned:
    """The shared attention of one run, for ``ldm.denoiser.Denoiser``.

    Texts are aligned with the first text of the first picture, negative prompts with its negative
    prompt: the two halves of classifier-free guidance do not see each other.
    """

    def __init__(self, unet: UNet) -> None:
        """Make a view of the U-Net. Raises ArgumentError for one without self-attention."""
        self.rows = AlignedRows()

        def make(layer: Attention) -> AlignedAttention:
            result = with_state_of(layer, AlignedAttention)
            result.rows = self.rows
            return result

        self.unet = replace_self_attention(unet, make, "style_aligned")

    def begin(self, level: Level) -> None:
        """Prepare for a level of noise: nothing depends on it."""

    def wrap(self, unet: Callable[..., Tensor], call: UNetCall) -> Callable[..., Tensor]:
        """Return ``unet``, which computes with the view: it knows the rows of the call now."""
        self.rows.first = first_rows(call).to(call.pictures.device)
        return unet


def first_rows(call: UNetCall) -> Tensor:
    """Return the number of the first row of each row's kind: (rows,)."""
    bare = set(call.bare)
    kinds = [(text is None, row in bare) for row, text in enumerate(call.texts)]
    return torch.tensor([kinds.index(kind) for kind in kinds], device="cpu")


def check_lengths(prompted: Sequence[Prompted]) -> None:
    """Raise ArgumentError for pictures whose texts the U-Net cannot read in one call.

    Such pictures would not see each other.
    """
    scripts = [script for one in prompted for script in (*one.scripts, one.negative)]
    lengths = {each.length for script in scripts for _, each in script.lines}
    if len(lengths) > 1:
        raise ArgumentError(
            "style_aligned draws all pictures in one batch, but their prompts have different "
            "lengths in chunks of 75 tokens; shorten the longest ones, or draw without"
        )
