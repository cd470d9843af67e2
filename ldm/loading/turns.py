"""Turns: threads draw with one model side by side, and whatever changes the model waits for them.

What a run does to layers lives in the run (views of the networks, ``ldm.fast.replace``), so that
runs do not disturb each other. A LoRA, ``optimize`` or ``to`` changes the model itself: it begins
when no other thread draws, and who wants to draw meanwhile waits.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

from ldm.errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 30.0  # seconds after which a change that still waits says so


class Hold:
    """A run that is drawing. It belongs to the thread that computed its last step."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def move_here(self) -> None:
        """Give the run to this thread, which computes its next step."""
        self.thread = threading.get_ident()


class Turns:
    """Who uses a model now. Copies, also in other processes, are used by nobody.

    Attributes:
        changes: how often the model has been changed.
        vae: held while the VAE computes: one picture at a time, as its memory is the most.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._holds: list[Hold] = []
        self._changer: int | None = None  # the thread that changes the model
        self._depth = 0  # of its changes within changes
        self._waiting: list[int] = []  # threads that want to
        self._renew()
        EVERY.add(self)

    def _renew(self) -> None:
        self._condition = threading.Condition()
        self.vae = threading.RLock()

    def after_fork(self) -> None:
        """Forget the threads that the new process has not."""
        me = threading.get_ident()
        self._holds = [hold for hold in self._holds if hold.thread == me]
        self._changer = self._changer if self._changer == me else None
        self._waiting = []
        self._renew()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        """Copy and pickle as a new one."""
        return Turns, ()

    @contextlib.contextmanager
    def drawing(
        self, alone: Callable[[], bool] = lambda: False, queue: bool = True
    ) -> Iterator[Hold]:
        """Let nothing change the model inside, except for this thread.

        alone: whether no other thread may draw meanwhile; it is called when the model is at rest.
        queue: whether changes that wait go first. What a run of another thread may wait for, such
            as a preview of it, must not queue behind a change that waits for the run.
        """
        hold = Hold()
        with self._condition:
            self._condition.wait_for(lambda: self._may_draw(hold.thread, alone, queue))
            self._holds.append(hold)
        try:
            yield hold
        finally:
            with self._condition:
                if hold in self._holds:  # it is not, in a process forked by another thread
                    self._holds.remove(hold)
                self._condition.notify_all()

    def _may_draw(self, me: int, alone: Callable[[], bool], queue: bool) -> bool:
        if self._changer not in (None, me):
            return False
        if any(hold.thread == me for hold in self._holds):  # a run within a run
            return True
        return not (queue and self._waiting) and not (self._holds and alone())

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Change the model inside, while no other thread draws or changes it.

        Raises ArgumentError in a run whose thread would wait for another run, which waits for it.
        """
        me = threading.get_ident()
        with self._condition:
            if self._changer != me:
                self._wait(me)
            self._changer = me
            self._depth += 1
        try:
            yield
        finally:
            with self._condition:
                self._depth -= 1
                self.changes += 1
                if not self._depth:
                    self._changer = None
                self._condition.notify_all()

    def _wait(self, me: int) -> None:
        drawing = {hold.thread for hold in self._holds}
        if me in drawing and drawing.intersection(self._waiting):
            raise ArgumentError(
                "two threads change the model in the middle of pictures that they draw, and would "
                "wait for each other; change it before drawing, or draw with a copy.deepcopy"
            )
        self._waiting.append(me)
        try:
            if not self._condition.wait_for(lambda: self._may_change(me), PATIENCE):
                warnings.warn(
                    f"a change of the model waits for {len(self._holds)} unfinished pictures of "
                    "other threads; finish or close their streams",
                    stacklevel=5,
                )
                self._condition.wait_for(lambda: self._may_change(me))
        finally:
            self._waiting.remove(me)
            self._condition.notify_all()

    def _may_change(self, me: int) -> bool:
        return self._changer is None and all(hold.thread == me for hold in self._holds)


EVERY: weakref.WeakSet[Turns] = weakref.WeakSet()
_forked_from = 0  # the number of threads there; 0 in a process that was not forked


def _after_fork() -> None:
    """Make PyTorch and models usable in the new process, which has none of the other threads.

    Products would wait for PyTorch's for ever, so one thread computes.
    """
    global _forked_from
    _forked_from = torch.get_num_threads()
    torch.set_num_threads(1)
    for turns in list(EVERY):
        turns.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def check_process(device: torch.device) -> None:
    """Warn once in a process that was forked.

    Raises ArgumentError on a GPU, which such a process cannot use.
    """
    global _forked_from
    if not _forked_from:
        return
    if device.type != "cpu":
        raise ArgumentError(
            f"the device is {device}, which a forked process cannot use; start processes by "
            '"spawn" (multiprocessing.get_context("spawn"))'
        )
    if _forked_from > 1:
        warnings.warn(
            "this process was forked, where PyTorch computes with one thread only; start "
            'processes by "spawn" for more',
            stacklevel=3,
        )
        _forked_from = 1


class HasTurns(Protocol):
    """A model."""

    turns: Turns

    def send_home(self) -> None:
        """Take what computes on a GPU for a while off it: what changes weights reads them."""


M = TypeVar("M", bound=HasTurns)


def changes_model(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Have a method of a model wait until no other thread draws, and let none meanwhile."""

    @functools.wraps(method)
    def call(model: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with model.turns.changing():
            model.send_home()
            return method(model, *args, **kwargs)

    return call


def reads_model(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Have a method of a model wait until nobody changes it, and let nobody meanwhile."""

    @functools.wraps(method)
    def call(model: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with model.drawing(queue=False):
            return method(model, *args, **kwargs)

    return call
