"""Keep only the inputs of a computation for the backward pass, and what is costly inside it.

Gradient checkpointing (Chen et al. 2016) computes a whole block again. Here the computation marks
outputs that it would rather keep, such as attention's: then it takes them as they are. What is
computed again is bit-identical, so gradients are the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class _Now(threading.local):
    """What this thread computes at the moment."""

    run: Run | None = None
    # Where everything is kept, to count it: what is called with outputs that are kept anyway.
    watch: Callable[[Tensor], object] | None = None


class _EnoughError(Exception):
    """The rest of a computation is not needed for the backward pass."""


class Run:
    """One computation of a function: what it keeps, and how its saved tensors come back."""

    def __init__(
        self, module: nn.Module, function: Callable[..., Tensor], inputs: tuple[Any, ...]
    ) -> None:
        self.function = function
        self.weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
        self.inputs = tuple(detached(one) if torch.is_tensor(one) else one for one in inputs)
        self.kept: list[Tensor] = []  # outputs that are not computed again
        self.count = 0  # tensors that autograd saves
        self.found: dict[int, Tensor] = {}  # of these, the ones that are here again
        self.next: Iterator[Tensor] | None = None  # while it computes again: what it kept
        kind = next(one.device.type for one in self.inputs if torch.is_tensor(one))
        self.autocast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        )
        self.random = torch.get_rng_state()  # of dropout

    def first(self, inputs: tuple[Any, ...]) -> Tensor:
        """Compute the function, and let autograd save numbers in the place of tensors."""
        with saved_tensors_hooks(self.number, self.give), current(self):
            return self.function(*inputs)

    def number(self, tensor: Tensor) -> int | Tensor:
        """Return the place of a tensor among those that are saved; weights are saved themselves."""
        if tensor.untyped_storage().data_ptr() in self.weights:
            return tensor
        self.count += 1
        return self.count - 1

    def give(self, place: int | Tensor) -> Tensor:
        """Return a saved tensor, and forget it."""
        if torch.is_tensor(place):
            return place
        if place not in self.found:
            self.again()
        return self.found.pop(place)

    def again(self) -> None:
        """Compute the function as far as it saves something, for what it saves."""
        found: dict[int, Tensor] = {}

        def collect(tensor: Tensor) -> Any:  # the graph of this is not run, so it gets nothing
            if tensor.untyped_storage().data_ptr() not in self.weights:
                found[len(found)] = tensor.detach()
                if len(found) == self.count:
                    raise _EnoughError

        self.next = iter(self.kept)
        before = torch.get_rng_state()
        torch.set_rng_state(self.random)
        try:
            with (
                contextlib.suppress(_EnoughError),
                torch.enable_grad(),
                self.autocast,
                saved_tensors_hooks(collect, self.give),
                current(self),
            ):
                self.function(*self.inputs)
        finally:
            torch.set_rng_state(before)
            self.next = None
        self.found = found


def recomputed(module: nn.Module, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Compute a function, whose inputs are kept for the backward pass, but not what it saves.

    module: whose weights the function reads. The function must compute the same again.
    """
    if _NOW.watch is not None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*inputs)
    return Run(module, function, inputs).first(inputs)


def known() -> Tensor | None:
    """Return the next output that is kept, while a function computes again; else None."""
    run = _NOW.run
    return None if run is None or run.next is None else next(run.next)


def keep(output: Tensor) -> Tensor:
    """Keep an output, which a function need not compute again: it asks ``known`` for it."""
    run = _NOW.run
    if run is not None and run.next is None:
        run.kept.append(output.detach())
    if _NOW.watch is not None and torch.is_grad_enabled():
        _NOW.watch(output)
    return output


@contextlib.contextmanager
def everything_kept(watch: Callable[[Tensor], object]) -> Iterator[None]:
    """Let functions keep all that they save, to count it.

    watch: is called with each output that they keep anyway.
    """
    before, _NOW.watch = _NOW.watch, watch
    try:
        yield
    finally:
        _NOW.watch = before


@contextlib.contextmanager
def current(run: Run) -> Iterator[None]:
    """Let ``known`` and ``keep`` be of a computation."""
    before, _NOW.run = _NOW.run, run
    try:
        yield
    finally:
        _NOW.run = before


def detached(tensor: Tensor) -> Tensor:
    """Return a tensor without its history, which autograd treats alike."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


_NOW = _Now()
