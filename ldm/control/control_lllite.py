"""ControlNet-LLLite: small networks that change what a U-Net's attention layers read.

Source: kohya-ss/sd-scripts, ``networks/control_net_lllite.py`` (no paper). Each layer y = W x of
the pixels' queries, keys and values becomes y = W (x + s Δ), with c a convolution of the picture:

    Δ = up(ReLU(mid([c, ReLU(down(x))])))

The U-Net does not change: hooks on its layers add Δ inside ``additions``, and nothing outside.
What is added belongs to the call, so that several threads may draw with one model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ldm.control.controlnet import ControlNet
from ldm.errors import ArgumentError


class LayerSizes(NamedTuple):
    """The sizes of one layer's network."""

    dim: int  # of the layer's input
    inner: int  # of ``down``
    outer: int  # of c
    kernels: tuple[int, ...]  # of the convolutions, whose strides are the same


@dataclass(frozen=True)
class LLLiteConfig:
    """The sizes of each layer's network, by the layer's name in the U-Net.

    divisor: what width and height of a picture must be multiples of.
    """

    layers: Mapping[str, LayerSizes]
    divisor: int
    conditioning_channels: int = 3


class LLLiteModule(nn.Module):
    """The network of one layer."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        dim, inner, outer, kernels = sizes
        layers: list[nn.Module] = []
        before = 3
        for index, kernel in enumerate(kernels):
            width = outer if index == len(kernels) - 1 else outer // 2
            layers += [nn.Conv2d(before, width, kernel, stride=kernel), nn.ReLU()]
            before = width
        self.conditioning1 = nn.Sequential(*layers[:-1])
        self.down = nn.Sequential(nn.Linear(dim, inner))
        self.mid = nn.Sequential(nn.Linear(inner + outer, inner))
        self.up = nn.Sequential(nn.Linear(inner, dim))

    def embed(self, picture: Tensor) -> Tensor:
        """Return c of pictures (b, 3, H, W) in [−1, 1]: (b, N, width)."""
        return self.conditioning1(picture).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return Δ of a layer's input (rows, N, dim); c: (rows, N, width)."""
        h = F.relu(self.down(x))
        return self.up(F.relu(self.mid(torch.cat([c, h], dim=2))))


class ControlLLLite(nn.Module):
    """All networks of a file, by the names of the U-Net's layers with "-" in place of "."."""

    def __init__(self, config: LLLiteConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleDict(
            {name.replace(".", "-"): LLLiteModule(one) for name, one in config.layers.items()}
        )
        self._handles: list[RemovableHandle] = []

    def attach(self, unet: nn.Module) -> None:
        """Put a hook onto each layer; ``detach`` takes them off."""
        modules = dict(unet.named_modules())
        for name in self.layers:
            layer = modules[name.replace("-", ".")]
            # A hook that is copied and pickled with the U-Net.
            hook = functools.partial(self._change, name)
            # As in sd-scripts, the last of several sees the layer's input first.
            self._handles.append(layer.register_forward_pre_hook(hook, prepend=True))

    def detach(self) -> None:
        """Take the hooks off: the U-Net is as before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def embed_hint(self, picture: Tensor) -> dict[str, Tensor]:
        """Return c of each layer for pictures (b, 3, H, W) in [0, 1]; once a run."""
        picture = 2 * picture - 1
        layers = cast("Mapping[str, LLLiteModule]", self.layers)
        return {name: layer.embed(picture) for name, layer in layers.items()}

    def _change(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = inputs[0]
        for one in ACTIVE.get():
            if one.network is self:
                c, rows = one.features[name], len(one.factors)
                c = c[one.pictures] if len(c) > 1 else c.expand(rows, -1, -1)
                drawn, others = x[:rows], x[rows:]  # a reference's rows are not steered
                changed = drawn + one.factors * self.layers[name](drawn, c)
                x = torch.cat([changed, others]) if len(others) else changed
        return None if x is inputs[0] else (x, *inputs[1:])


class Addition(NamedTuple):
    """What one ControlNet-LLLite adds in one U-Net call."""

    network: ControlLLLite
    features: dict[str, Tensor]  # c of each layer
    pictures: Tensor  # (rows,): the picture of each row
    factors: Tensor  # (rows, 1, 1): the scale of each row


ACTIVE: ContextVar[tuple[Addition, ...]] = ContextVar("ACTIVE", default=())


@contextlib.contextmanager
def additions(every: Sequence[Addition]) -> Iterator[None]:
    """Add these to the layers of U-Nets that this thread calls inside."""
    token = ACTIVE.set(tuple(every))
    try:
        yield
    finally:
        ACTIVE.reset(token)


def check_lllite_size(network: ControlLLLite, size: tuple[int, int]) -> None:
    """Raise ArgumentError for a (height, width) whose pixels and c's do not match."""
    divisor = network.config.divisor
    if size[0] % divisor or size[1] % divisor:
        raise ArgumentError(
            f"the size is {size[1]}x{size[0]}; with this ControlNet-LLLite, width and height must "
            f"be multiples of {divisor}"
        )


def check_lllite_ways(compile: bool, offload: bool) -> None:
    """Raise ArgumentError for ways to compute that ControlNet-LLLites do not work with."""
    for name, on in {"compile": compile, "offload": offload}.items():
        if on:
            raise ArgumentError(
                f"{name} does not go together with a ControlNet-LLLite, which changes layers while "
                f"they compute; leave {name} out, or unload_controlnet(name)"
            )


Network = ControlNet | ControlLLLite  # what ``load_controlnet`` loads
