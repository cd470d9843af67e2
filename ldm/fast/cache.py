"""Results that layers compute once from their weights, and when they are out of date."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol

from torch import nn

from ldm.fast.packed import kept, version


class Computed(Protocol):
    """Tensors that a layer computed from its weights and keeps."""

    def renew(self, owner: Any) -> None:
        """Compute them again where they lie, if what they follow from has changed in place."""


# Where each layer of a call writes what it read of them, if somebody (a recording) keeps it.
READ: ContextVar[list[tuple[Any, Computed]] | None] = ContextVar("READ", default=None)


class Caching:
    """Base of what keeps a result as ``cached``; copies and pickles leave that out."""

    cached: object = None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "cached"}


def marks(layer: nn.Linear | nn.Conv2d) -> tuple[object, ...]:
    """Return what tells whether a layer's weights have changed: its tensors, their versions."""
    packed = kept(layer)
    if packed is not None:
        return packed
    weight = layer.weight
    return weight, version(weight)


def same_marks(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    """Whether two marks are of the same tensors at the same versions."""
    return len(a) == len(b) and all(
        x == y if isinstance(x, int | float) else x is y for x, y in zip(a, b, strict=True)
    )
