"""Replace layers of a model by others, and restore them; or in a view, which leaves the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

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
    """Make a layer of another kind with this one's settings, and the same parameters and hooks.

    A parameter, child or hook that is assigned to one of the two is the other's, too.
    """
    result = kind.__new__(kind)
    vars(result).update(vars(layer))
    return result


def with_children(module: M, **children: nn.Module) -> M:
    """Make a module like another, of which it shares all children except these."""
    result = with_state_of(module, type(module))
    result._modules = {**module._modules, **children}
    result._compiled_call_impl = None  # it would call the other module
    return result


def with_hook(layer: M, hook: Callable[..., Any], before: bool = False) -> M:
    """Make a module like another, with a further forward hook, or one before its forward."""
    result = with_children(layer)
    if before:
        result._forward_pre_hooks = result._forward_pre_hooks.copy()
        result.register_forward_pre_hook(hook)
    else:
        result._forward_hooks = result._forward_hooks.copy()
        result.register_forward_hook(hook)
    return result


def view(module: M, exchange: Callable[[nn.Module], nn.Module]) -> M:
    """Make a model like another, with ``exchange(layer)`` in the place of each of its layers.

    The two share all weights, and all layers that ``exchange`` returns as they are; the other model
    does not change, so that calls of both may run at once.
    """
    pairs = [(name, child) for name, child in module._modules.items() if child is not None]
    viewed = {name: exchange(view(child, exchange)) for name, child in pairs}
    others = {name: viewed[name] for name, child in pairs if viewed[name] is not child}
    return with_children(module, **others) if others else module


class Replacement(nn.Module):
    """A layer that replaces a plain one, until ``original`` gives that back."""

    replaced: tuple[nn.Module]  # in a tuple, so that PyTorch takes it for no child

    @classmethod
    def of(cls: type[R], layer: nn.Module) -> R:
        """Make the replacement of a layer, or of what another replacement replaces."""
        result = with_state_of(layer, cls)
        if not isinstance(layer, Replacement):
            result.replaced = (layer,)
        return result

    def original(self) -> nn.Module:
        """Return the layer that was here before, with the present parameters."""
        (layer,) = self.replaced
        layer.training = self.training
        return layer
