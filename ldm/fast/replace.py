"""Put other layers into a model in the places of its own, and take them out again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
R = TypeVar("R", bound="Replacement")


def replace_children(model: nn.Module, exchange: Callable[[nn.Module], nn.Module]) -> None:
    """Put ``exchange(layer)`` in the place of each layer of a model; the model itself stays."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            other = exchange(layer)
            if other is not layer:
                parent.add_module(name, other)


def with_state_of(layer: nn.Module, kind: type[M]) -> M:
    """A layer of another kind with this one's settings, and the very same parameters and hooks.

    What is assigned to a parameter, a child or a hook of one of them is so in the other, too.
    """
    result = kind.__new__(kind)
    vars(result).update(vars(layer))
    return result


class Replacement(nn.Module):
    """A layer that stands in the place of a plain one, until ``original`` gives that back."""

    replaced: tuple[nn.Module]  # in a tuple, so that PyTorch takes it for no child

    @classmethod
    def of(cls: type[R], layer: nn.Module) -> R:
        """Stand in the place of a layer, or of what another replacement stands for."""
        result = with_state_of(layer, cls)
        if not isinstance(layer, Replacement):
            result.replaced = (layer,)
        return result

    def original(self) -> nn.Module:
        """The layer that was here before, with the parameters of now."""
        (layer,) = self.replaced
        layer.training = self.training
        return layer
