"""What techniques that change self-attention share: a U-Net in which pictures read each other.

Such a technique belongs to one run: it makes a view of the model's U-Net (``ldm.fast.replace``),
with layers of its own that share the weights. So the model itself never changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from ldm.errors import ArgumentError
from ldm.fast.replace import view
from ldm.layers import Attention, TransformerBlock
from ldm.unet import UNet


def replace_self_attention(unet: UNet, make: Callable[[Attention], Attention], name: str) -> UNet:
    """Return a view of a U-Net with ``make(layer)`` in the place of each self-attention.

    name: of the argument that asks for it. Raises ArgumentError for a U-Net without self-attention
    in transformer blocks.
    """

    def exchange(layer: nn.Module) -> nn.Module:
        if isinstance(layer, TransformerBlock) and not layer.only_cross:
            return view(layer, lambda child: make(child) if child is layer.attn1 else child)
        return layer

    changed = view(unet, exchange)
    if changed is unet:
        raise ArgumentError(
            f"{name} shares the self-attention of transformer blocks, and this model has none; "
            "leave it out"
        )
    return changed


class Moments(NamedTuple):
    """Means and standard deviations, shaped to broadcast."""

    mean: Tensor
    std: Tensor

    def of_rows(self, rows: Tensor | slice) -> Moments:
        """Return those of some rows."""
        return Moments(self.mean[rows], self.std[rows])


def adain(x: Tensor, own: Moments, style: Moments) -> Tensor:
    """Give x, which has its ``own`` moments, those of a style.

    Source: Huang & Belongie 2017, "Arbitrary style transfer in real-time with adaptive instance
    normalization", eq. 8.
    """
    return (x - own.mean) / own.std * style.std + style.mean
