"""Seamless tiles: pictures whose right edge continues at the left, and whose bottom at the top."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from torch import nn

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def seamless(*modules: nn.Module) -> Iterator[None]:
    """Let the modules' convolutions see the other side past an edge, instead of zeros, inside.

    Rolling a picture then rolls the result, for multiples of the coarsest level's pixels.
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


def tiled(function: Callable[P, T], *modules: nn.Module) -> Callable[P, T]:
    """Wrap ``function`` so that the modules are seamless while it runs."""

    def call(*arguments: P.args, **options: P.kwargs) -> T:
        with seamless(*modules):
            return function(*arguments, **options)

    return call
