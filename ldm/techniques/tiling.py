"""Seamless tiles: pictures whose right edge goes on at the left, and the lower at the upper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def seamless(*modules: nn.Module) -> Iterator[None]:
    """Inside, the modules' convolutions see the other side past an edge, instead of zeros.

    A picture that is rolled then gives a rolled result, for multiples of the coarsest level's
    pixels.
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
    """``function``, called with the modules seamless."""

    def call(*arguments: Any) -> Any:
        with seamless(*modules):
            return function(*arguments)

    return call
