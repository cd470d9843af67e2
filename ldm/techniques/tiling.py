"""Seamless tiles: pictures whose right edge continues at the left, and the lower at the upper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def seamless(*modules: nn.Module) -> Iterator[None]:
    """Pad the modules' convolutions with the opposite edge, instead of zeros, inside the context.

    A rolled picture then gives a rolled result, for multiples of the coarsest level's pixels.
    """
    convolutions = [
        layer
        for module in modules
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    ]
    for layer in convolutions:
        layer.padding_mode = "circular"
    try:
        yield
    finally:
        for layer in convolutions:
            layer.padding_mode = "zeros"


def tiled(function: Callable, *modules: nn.Module) -> Callable:
    """Wrap ``function`` to be called with the modules seamless."""

    def call(*arguments: Any) -> Any:
        with seamless(*modules):
            return function(*arguments)

    return call
