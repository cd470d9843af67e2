"""Weights in 8-bit integers on the GPU, plain ones in the CPU's memory: W8A16. Not exact.

W[i] ≈ s[i] q[i] with q in −127…127 and a scale s for each output channel, from its largest value
(Dettmers et al. 2022, "LLM.int8()", section 2: absmax, row by row). A layer multiplies the two when
it is called, in the dtype of what it reads, so that memory holds the plain weight of one layer at a
time. LoRAs change the plain weights, and what they make of them is rounded as a whole: nothing of
a small change is lost to the rounding of the base.

Linear layers and convolutions of U-Nets, ControlNets and text encoders; small ones stay as they
are, and so does the VAE, which is small beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.clip import CLIPTextEncoder
from ldm.fast.int8 import rounded_rows
from ldm.fast.offload import Offload, tensors_of
from ldm.fast.replace import Replacement, replace_children
from ldm.unet import UNetEncoder

LEAST = 1 << 16  # values of a weight that is worth it


class Int8Weight(Replacement):
    """Base of layers that may compute with rounded weights, where ``rows`` holds them."""

    weight: Tensor
    rows: tuple[Tensor, Tensor] | None = None  # (q, scales), on the GPU

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "rows"}

    def weight_for(self, x: Tensor) -> Tensor:
        """Return the weight that x is multiplied with."""
        if self.rows is None:
            return self.weight
        q, scales = self.rows
        return torch.mul(q, scales, out=torch.empty_like(q, dtype=x.dtype))


class Int8WeightLinear(Int8Weight, nn.Linear):
    """``nn.Linear`` with rounded weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_for(x), self.bias)


class Int8WeightConv2d(Int8Weight, nn.Conv2d):
    """``nn.Conv2d`` with rounded weights."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight_for(x), self.bias)


KINDS: dict[type[nn.Module], type[Int8Weight]] = {
    nn.Linear: Int8WeightLinear,
    nn.Conv2d: Int8WeightConv2d,
}


class Int8Offload(Offload):
    """``Offload`` that brings the weights of some parts in 8 bits."""

    def __init__(
        self, parts: Sequence[nn.Module], device: torch.device, rounded: Sequence[nn.Module]
    ) -> None:
        """Bring parts; ``rounded``: those whose weights come in 8 bits."""
        self.layers = {part: list[Int8Weight]() for part in parts}
        for part in rounded:
            replace_children(part, in_8_bits)
            self.layers[part] = [one for one in part.modules() if isinstance(one, Int8Weight)]
        super().__init__(parts, device)

    def brought(self, part: nn.Module) -> list[Tensor]:
        """See ``Offload``."""
        rounded = {id(layer.weight) for layer in self.layers[part]}
        return [tensor for tensor in super().brought(part) if id(tensor) not in rounded]

    def bring(self, part: nn.Module) -> None:
        """Bring a part to the device, and no other: its weights are rounded there."""
        if part is self.away:
            return
        super().bring(part)
        for layer in self.layers[part]:
            layer.rows = round_there(layer.weight.detach(), self.device)

    def send_home(self) -> None:
        """Take the part off the device."""
        if self.away is not None:
            for layer in self.layers[self.away]:
                layer.rows = None
        super().send_home()


@torch.no_grad()
def round_there(weight: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Round a weight (out, …) on a device; return (q, scales), which multiply to its shape."""
    q, scales = rounded_rows(weight.to(device, non_blocking=True))
    return q, scales.view(-1, *[1] * (weight.ndim - 1))


def is_rounded(layer: nn.Module) -> bool:
    """Whether a layer's weight is kept in 8 bits."""
    if type(layer) not in KINDS:
        return False
    assert isinstance(layer.weight, Tensor)
    return layer.weight.numel() >= LEAST


def in_8_bits(layer: nn.Module) -> nn.Module:
    """Return a layer that may have its weight in 8 bits, if that is worth it."""
    return KINDS[type(layer)].of(layer) if is_rounded(layer) else layer


def sizes_in_8_bits(parts: Mapping[str, nn.Module]) -> dict[str, int]:
    """Count the bytes on the GPU of those parts whose weights are brought in 8 bits."""
    rounded = (UNetEncoder, CLIPTextEncoder)
    return {name: size_in_8_bits(part) for name, part in parts.items() if isinstance(part, rounded)}


def size_in_8_bits(part: nn.Module) -> int:
    """Count the bytes of a part in 8 bits on the GPU, and of one plain weight at a time."""
    weights = {
        id(layer.weight): cast(Tensor, layer.weight)
        for layer in part.modules()
        if isinstance(layer, Int8Weight) or is_rounded(layer)
    }
    whole = sum(one.nbytes for one in tensors_of([part]) if id(one) not in weights)
    rounded = sum(one.numel() + 4 * len(one) for one in weights.values())  # scales are float32
    return whole + rounded + max((one.nbytes for one in weights.values()), default=0)
