"""Convolutions and linear layers whose weights lie in memory as oneDNN reads them.

PyTorch hands oneDNN plain weights, which it re-orders into blocks at every call: at 8×8 latents
that takes longer than the products themselves. Here a weight is packed at its first use and stays
so; the plain tensor is given up meanwhile, and comes back, to the bit, to whoever asks for it
(state_dict, LoRA, …), after which the next use packs anew. So weights never count twice in memory
and never go stale.

The operators are PyTorch's private ones, those its compiler calls; `supported` tries them.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import ItemsView, ValuesView
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.layers import GEGLU

log = logging.getLogger(__name__)
DTYPES = (torch.float32, torch.bfloat16)
LARGE = 1 << 20  # weights of a float32 layer from which packing gains


class Weights(dict[str, Any]):
    """A layer's parameters, its ``weight`` being packed or plain, never both.

    It takes the place of ``module._parameters``, through which PyTorch reads and writes them all.
    """

    def __init__(self, parameters: dict[str, nn.Parameter | None]) -> None:
        super().__init__(parameters)
        self.packed: tuple[Tensor, ...] | None = None
        # Somebody else may still hold the plain weight, and change it in place.
        self._plain: weakref.ref[nn.Parameter] | None = None
        self._version = 0

    def pack(self, packed: tuple[Tensor, ...]) -> None:
        """Keep these, of the present weight and in the order of its rows, in its place."""
        weight = super().__getitem__("weight")
        self._plain, self._version = weakref.ref(weight), version(weight)
        self.packed = packed
        super().__setitem__("weight", None)

    def ready(self) -> tuple[Tensor, ...] | None:
        """What was packed, if the weight has not changed since."""
        if self.packed is not None:
            weight = self._plain()
            if weight is not None and version(weight) != self._version:
                self.unpack()
        return self.packed

    @torch.inference_mode(False)
    @torch.no_grad()
    def unpack(self) -> None:
        """Have the plain weight again."""
        if self.packed is None:
            return
        weight = self._plain()
        if weight is None:
            rows = [part.to_dense() for part in self.packed]
            weight = nn.Parameter(torch.cat(rows) if rows[1:] else rows[0], requires_grad=False)
        self.packed = self._plain = None
        super().__setitem__("weight", weight)

    def __getitem__(self, name: str) -> nn.Parameter | None:
        if name == "weight":
            self.unpack()
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: nn.Parameter | None) -> None:
        if name == "weight":
            self.packed = self._plain = None
        super().__setitem__(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def pop(self, name: str, *default: Any) -> Any:
        self.unpack()
        return super().pop(name, *default)

    def items(self) -> ItemsView[str, Any]:
        self.unpack()
        return super().items()

    def values(self) -> ValuesView[Any]:
        self.unpack()
        return super().values()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def __reduce__(self) -> tuple[type[Weights], tuple[dict[str, Any]]]:
        return Weights, (self.copy(),)


def version(tensor: Tensor) -> float:
    """How often a tensor was changed in place; NaN, equal to nothing, where that is not counted."""
    return float("nan") if tensor.is_inference() else tensor._version


def usable(layer: nn.Module, x: Tensor) -> bool:
    """Whether x may go through packed weights: not where gradients or autocast are wanted."""
    return (
        x.is_cpu
        and x.dtype in DTYPES
        and not (torch.is_grad_enabled() and (x.requires_grad or trained(layer)))
        and not torch.is_autocast_enabled("cpu")
        and supported(x.dtype)
    )


def trained(layer: nn.Module) -> bool:
    """Whether gradients are wanted of a layer's weight; a packed one never is."""
    weights = layer._parameters
    return weights.packed is None and weights["weight"].requires_grad


def ready(layer: nn.Module, x: Tensor, parts: int = 1) -> tuple[Tensor, ...] | None:
    """The packed weight of a layer for x, in that many parts; None where it cannot be used."""
    if not usable(layer, x):
        return None
    packed = layer._parameters.ready()
    if packed is None:
        packed = pack(layer, x, parts)
    return packed if packed is not None and packed[0].dtype == x.dtype else None


@torch.inference_mode(False)
@torch.no_grad()
def pack(layer: nn.Linear | nn.Conv2d, x: Tensor, parts: int) -> tuple[Tensor, ...] | None:
    """Pack a layer's weight for inputs like x; None where its dtype is another."""
    weight = layer.weight
    if weight.dtype != x.dtype or not weight.is_cpu or not weight.numel():
        return None
    if isinstance(layer, nn.Conv2d):
        how = (layer.padding, layer.stride, layer.dilation, layer.groups, list(x.shape))
        packed = (torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *how),)
    else:
        rows = x.numel() // max(x.shape[-1], 1)
        packed = tuple(
            torch.ops.mkldnn._reorder_linear_weight(part.contiguous(), rows)
            for part in weight.chunk(parts)
        )
    layer._parameters.pack(packed)
    return packed


@functools.cache
def supported(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and processor have the private operators, with the right results."""
    ok, problem = False, "other results than the plain operators"
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise RuntimeError("no native bfloat16")
        with torch.inference_mode(False), torch.no_grad():
            ok = _right(dtype)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as error:
        problem = str(error).splitlines()[0]
    if not ok:
        log.debug("packed %s weights cannot be used here: %s", dtype, problem)
    return ok


def _right(dtype: torch.dtype) -> bool:
    """Try each operator on small tensors."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, weight, bias, image, kernel = (
        draw(3, 8), draw(6, 8), draw(6), draw(1, 8, 5, 5), draw(6, 8, 3, 3),
    )  # fmt: skip
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 3)
    blocks = torch._C._nn.mkldnn_reorder_conv2d_weight(
        kernel.to_mkldnn(), [1, 1], [1, 1], [1, 1], 1, [1, 8, 5, 5]
    )
    pairs = [
        (linear(x, packed, bias), F.linear(x, weight, bias)),
        (linear(x, packed, bias, "gelu"), F.gelu(F.linear(x, weight, bias))),
        (linear_mul(x, x[:, :6], packed, bias), F.linear(x, weight, bias) * x[:, :6]),
        (
            convolution(image, blocks, bias, (1, 1), (1, 1), (1, 1), 1),
            F.conv2d(image, kernel, bias, padding=1),
        ),
        (packed.to_dense(), weight),
        (blocks.to_dense(), kernel),
    ]
    near = 1e-5 if dtype == torch.float32 else 0.05
    return all(torch.allclose(a.float(), b.float(), near, near) for a, b in pairs)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """x Wᵀ + b with a packed W, and ``then`` "gelu" (the exact one) on it."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, then, [], "none")


def linear_mul(x: Tensor, other: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """(x Wᵀ + b) · other with a packed W."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, other.contiguous(), packed, bias, "mul")


def convolution(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    padding: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """x ∗ W + b with a packed W; the result is channels_last whatever x is."""
    return torch.ops.mkldnn._convolution_pointwise(
        x, packed, bias, padding, stride, dilation, groups, "none", [], ""
    )


class PackedLinear(nn.Linear):
    """``nn.Linear``, packed; but for small ones in float32, where MKL is as fast as oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        small = x.dtype == torch.float32 and self.in_features * self.out_features < LARGE
        packed = None if small else ready(self, x)
        return super().forward(x) if packed is None else linear(x, packed[0], self.bias)


class PackedConv2d(nn.Conv2d):
    """``nn.Conv2d``, packed."""

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return self.convolve(x, self.padding)
        x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return self.convolve(x, (0, 0))

    def convolve(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """x ∗ W + b with other zeros around than the layer's own."""
        packed = None if x.dim() != 4 or isinstance(padding, str) else ready(self, x)
        if packed is None:
            rest = (self.stride, padding, self.dilation, self.groups)
            return F.conv2d(x, self.weight, self.bias, *rest)
        rest = (padding, self.stride, self.dilation, self.groups)
        return convolution(x, packed[0], self.bias, *rest)


class PackedGEGLU(GEGLU):
    """``GEGLU`` as two products, the activation and the gate done on their way to memory."""

    def forward(self, x: Tensor) -> Tensor:
        packed = ready(self.proj, x, parts=2)
        if packed is None:
            return super().forward(x)
        biases = (None, None) if self.proj.bias is None else self.proj.bias.chunk(2)
        gate = linear(x, packed[1], biases[1], "gelu")
        return linear_mul(x, gate, packed[0], biases[0])


class GEGLULinear(PackedLinear):
    """The weight of a ``PackedGEGLU``, packed as its two halves; alone it is an ``nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear.forward(self, x)


Packed = (PackedLinear, PackedConv2d)
