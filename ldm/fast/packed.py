"""Convolutions and linear layers whose weights lie in memory as oneDNN reads them.

PyTorch hands oneDNN plain weights, which it re-orders into blocks at every call: at 8×8 latents
that takes longer than the products themselves. Here a weight is packed at its first use and stays
so. The plain tensor is freed meanwhile; whatever reads it (state_dict, LoRA, …) gets it back,
bit-identical, after which the next use packs anew. So weights never count twice in memory and never
go stale. Threads may share layers: whatever packs or unpacks holds one lock.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.fast import onednn
from ldm.fast.replace import Replacement
from ldm.layers import GEGLU
from ldm.memory.thrift import give_back

PACKED_DTYPES = (torch.float32, torch.bfloat16)
LARGE = 1 << 20  # weights of a float32 layer from which packing pays off
# Held while a weight changes its form, and while PyTorch reads its plain one.
_changing_form = threading.RLock()
if hasattr(os, "register_at_fork"):  # not on Windows; another thread may hold it at a fork
    os.register_at_fork(
        before=_changing_form.acquire,
        after_in_parent=_changing_form.release,
        after_in_child=_changing_form.release,
    )


# What is known of a weight without its values.
PROPERTIES = ("device", "dtype", "shape", "ndim", "is_cpu", "is_cuda", "is_meta", "requires_grad")
METADATA = {getattr(Tensor, name).__get__ for name in PROPERTIES} | {
    *(Tensor.numel, Tensor.size, Tensor.dim, Tensor.element_size, Tensor.is_floating_point)
}


class PackedWeight(nn.Parameter):
    """A weight that is packed or plain, never both.

    A layer that can use it packed calls `ready`. PyTorch passes any other use of it (reading,
    changing in place, copying) to ``__torch_function__``, which unpacks it first, unless its
    values do not matter.
    """

    packed: tuple[Tensor, ...] | None
    packed_for: torch.Size  # height and width of what a convolution's is for
    # The plain parameter before. Another object may still hold it, and change it in place.
    _before: Callable[[], nn.Parameter | None]
    _seen: float  # its version

    def __new__(cls, weight: Tensor) -> PackedWeight:
        return super().__new__(cls, weight, requires_grad=False)

    def __init__(self, weight: nn.Parameter) -> None:
        """Stand for an ordinary parameter, of which this is plain as yet."""
        self.packed, self._before = None, weakref.ref(weight)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function with the plain weights."""
        keywords = keywords or {}
        if function in METADATA:
            with onednn.as_plain_tensors():
                return function(*arguments, **keywords)
        with _changing_form:
            for weight in _weights_in((*arguments, *keywords.values())):
                weight.unpack()
            with onednn.as_plain_tensors():
                return function(*arguments, **keywords)

    @torch.inference_mode(False)
    @torch.no_grad()
    def pack(self, packed: tuple[Tensor, ...]) -> None:
        """Keep these parts of the weight, in the order of its rows, and free the plain tensor."""
        with onednn.as_plain_tensors():
            before = self._before()
            if before is not None and before.data_ptr() == self.data_ptr():
                self._seen = version(before)
            else:
                self._before = _gone
            size = self.data.nbytes
            self.data = self.data.new_empty(()).expand(self.shape)  # one value, of the same shape
            if self._before is _gone:
                give_back(size)
        self.packed = packed

    def ready(self) -> tuple[Tensor, ...] | None:
        """Return what was packed, if the weight has not changed since."""
        packed = self.packed
        if packed is not None:
            before = self._before()
            if before is not None and version(before) != self._seen:
                self.unpack()
                return None
        return packed

    @torch.inference_mode(False)
    @torch.no_grad()
    def unpack(self) -> None:
        """Restore the plain weight."""
        with _changing_form:
            if self.packed is None:
                return
            packed, self.packed = self.packed, None
            before = self._before()
            with onednn.as_plain_tensors():
                if before is not None:
                    self.data = before.data
                else:
                    rows = [part.to_dense() for part in packed]
                    self.data = torch.cat(rows) if len(rows) > 1 else rows[0]

    def plain(self) -> nn.Parameter:
        """Return an ordinary parameter: the one before, if another object still holds it."""
        with _changing_form, onednn.as_plain_tensors():
            self.unpack()
            before = self._before()
            if before is not None and before.data_ptr() == self.data_ptr():
                return before
            return nn.Parameter(self.data, self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """Copy as an ordinary parameter."""
        memo[id(self)] = result = copy.deepcopy(self.plain(), memo)
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as an ordinary parameter."""
        return self.plain().__reduce_ex__(protocol)


def _weights_in(values: Iterable[Any]) -> Iterator[PackedWeight]:
    """Find those among arguments, and in lists of them."""
    for value in values:
        if type(value) is PackedWeight:
            yield value
        elif isinstance(value, list | tuple):
            yield from _weights_in(value)


def _gone() -> None:
    """Refer to nothing, as a dead weak reference does."""


def version(tensor: Tensor) -> float:
    """Count changes of a tensor in place; NaN, equal to nothing, if PyTorch does not count them."""
    return float("nan") if tensor.is_inference() else tensor._version


def usable(layer: nn.Linear | nn.Conv2d, x: Tensor) -> bool:
    """Whether x may go through packed weights: not where gradients or autocast are wanted."""
    return (
        x.is_cpu
        and x.dtype in PACKED_DTYPES
        and not (torch.is_grad_enabled() and (x.requires_grad or trained(layer)))
        and not torch.is_autocast_enabled("cpu")
        and onednn.packs(x.dtype)
    )


def kept(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, ...] | None:
    """Return the packed weight of a layer, if it has one that is not stale."""
    weight = layer.weight
    return weight.ready() if type(weight) is PackedWeight else None


def trained(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether gradients are wanted of a layer's weight; a packed one never is."""
    return kept(layer) is None and layer.weight.requires_grad


def ready(layer: nn.Linear | nn.Conv2d, x: Tensor, parts: int = 1) -> tuple[Tensor, ...] | None:
    """Return a layer's packed weight for x, in that many parts; None if it cannot be used."""
    if not usable(layer, x):
        return None
    packed = kept(layer)
    if packed is None or fits_badly(layer, x):
        with _changing_form:
            packed = kept(layer)  # another thread may have done it
            if packed is not None and fits_badly(layer, x):
                cast(PackedWeight, layer.weight).unpack()
                packed = None
            if packed is None:
                packed = pack(layer, x, parts)
    return packed if packed is not None and packed[0].dtype == x.dtype else None


def fits_badly(layer: nn.Linear | nn.Conv2d, x: Tensor) -> bool:
    """Whether a packed weight is in the order of another size of pictures.

    oneDNN has several for convolutions of one pixel, and puts a wrong one in order at every call:
    72 ms instead of 0.5 for (1, 1280, 8, 8) in bfloat16, packed for 4 × 4 pixels.
    """
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1):
        return False
    return cast(PackedWeight, layer.weight).packed_for != x.shape[2:]


@torch.inference_mode(False)
@torch.no_grad()
def pack(layer: nn.Linear | nn.Conv2d, x: Tensor, parts: int) -> tuple[Tensor, ...] | None:
    """Pack a layer's weight for inputs like x; None if its dtype is another."""
    weight = cast(nn.Parameter, layer.weight)
    if weight.dtype != x.dtype or not weight.is_cpu or not weight.numel():
        return None
    if type(weight) is not PackedWeight:
        layer.weight = PackedWeight(weight)
        weight = layer.weight
    with onednn.as_plain_tensors():
        packed: tuple[Tensor, ...]
        if isinstance(layer, nn.Conv2d):
            padding = cast(tuple[int, int], layer.padding)  # no word: `PackedConv2d` sees to that
            how = (padding, layer.stride, layer.dilation, layer.groups, x.shape)
            packed = (onednn.packed_convolution_weight(weight.data, *how),)
            weight.packed_for = x.shape[2:]
        else:
            rows = x.numel() // max(x.shape[-1], 1)
            packed = tuple(
                onednn.packed_linear_weight(part, rows) for part in weight.data.chunk(parts)
            )
    weight.pack(packed)
    return packed


def plain_weight(layer: nn.Linear | nn.Conv2d) -> nn.Parameter:
    """Make a layer's weight an ordinary parameter again, and return it."""
    with _changing_form:
        if type(layer.weight) is PackedWeight:
            layer.weight = layer.weight.plain()
        return cast(nn.Parameter, layer.weight)


class Packing(Replacement):
    """A convolution or linear layer whose weight may be packed."""

    def original(self) -> nn.Module:
        if isinstance(self, nn.Linear | nn.Conv2d):
            plain_weight(self)
        return super().original()


class PackedLinear(Packing, nn.Linear):
    """``nn.Linear``, packed; except small ones in float32, where MKL is as fast as oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        small = x.dtype == torch.float32 and self.in_features * self.out_features < LARGE
        packed = None if small else ready(self, x)
        if packed is None:
            return super().forward(x)
        return onednn.packed_linear(x, packed[0], self.bias)


class PackedConv2d(Packing, nn.Conv2d):
    """``nn.Conv2d``, packed."""

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return self.convolve(x, self.padding)
        x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return self.convolve(x, (0, 0))

    def convolve(self, x: Tensor, padding: str | tuple[int, ...]) -> Tensor:
        """Compute x ∗ W + b with other zeros around than the layer's own."""
        packed = None if x.dim() != 4 or isinstance(padding, str) else ready(self, x)
        if packed is None or isinstance(padding, str):
            stride, dilation = self.stride, self.dilation
            return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, self.groups)
        how = (padding, self.stride, self.dilation, self.groups)
        return onednn.packed_convolution(x, packed[0], self.bias, *how)


class PackedGEGLU(Replacement, GEGLU):
    """``GEGLU`` as two products, the activation and the gate done on their way to memory."""

    def forward(self, x: Tensor) -> Tensor:
        packed = ready(self.proj, x, parts=2)
        if packed is None:
            return super().forward(x)
        biases = (None, None) if self.proj.bias is None else self.proj.bias.chunk(2)
        gate = onednn.packed_linear(x, packed[1], biases[1], "gelu")
        return onednn.packed_linear_mul(x, gate, packed[0], biases[0])


class GEGLULinear(PackedLinear):
    """The weight of a ``PackedGEGLU``, packed as its two halves; alone it is an ``nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear.forward(self, x)
