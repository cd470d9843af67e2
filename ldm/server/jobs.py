"""Jobs: what clients wait for, watch and cancel."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from PIL.Image import Image

from ldm.server.drawing import Drawing
from ldm.server.errors import CancelledError

if TYPE_CHECKING:
    from ldm.pipeline import Pipeline, Progress

State = Literal["queued", "drawing", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Status:
    """What is known of a job now.

    Attributes:
        place: how many pictures of others are drawn before it; 0 when it is being drawn.
        step, steps: done, and of all its pictures together.
        preview: of the picture that is being drawn, if somebody watches for one: a small PIL image.
        pictures: those that are done, in order, as ``Pipeline`` returns them: with their settings.
        error: why it failed.
    """

    state: State = "queued"
    place: int = 0
    step: int = 0
    steps: int = 0
    preview: Image | None = None
    pictures: tuple[Image, ...] = ()
    error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will change."""
        return self.state in ENDED


class Recorder(Protocol):
    """What keeps the steps of a job that asks for it (``Drawing.record``); called by the worker."""

    def watching(self, pipe: Pipeline) -> contextlib.AbstractContextManager[Any]:
        """Return what is entered while the pictures are drawn."""
        ...

    def step(self, pipe: Pipeline, progress: Progress, rows: Sequence[int]) -> None:
        """Record a step; rows: those of the batch that are the job's next pictures."""
        ...


@dataclass(eq=False)
class Job:
    """One request of a client. The worker changes it; any thread or event loop may watch it.

    Attributes:
        client: whose turn it takes. id: its name in addresses; it cannot be guessed.
        keep_partial: whether a stop keeps the picture as it is then, as A1111's "interrupt" does.
        details: what a route notes for itself. on_end: called once, by whoever ends it.
    """

    drawing: Drawing
    client: str = "local"
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    created: float = field(default_factory=time.time)
    recorder: Recorder | None = None
    keep_partial: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    on_end: Callable[[Job], None] | None = None
    status: Status = Status()
    version: int = 0
    stopping: bool = False
    skipping: bool = False
    watchers: int = 0  # who want previews
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(
        default_factory=set, repr=False
    )

    def update(self, **changes: Any) -> None:
        """Change the status, unless the job has ended, and wake up those who watch."""
        with self._lock:
            if self.status.ended:
                return
            self.status = replace(self.status, **changes)
            self.version += 1
            waiting = list(self._waiting)
            ended = self.status.ended
        for loop, event in waiting:
            if not event.is_set():  # else it has not looked yet, and wakes up once for both
                with contextlib.suppress(RuntimeError):  # that loop has been closed
                    loop.call_soon_threadsafe(event.set)
        if ended and self.on_end is not None:
            self.on_end(self)

    def cancel(self) -> None:
        """Stop it within a step; its status is "cancelled" now."""
        self.stopping = True
        self.update(state="cancelled", preview=None)

    def interrupt(self) -> None:
        """Stop it within a step, and end it with the picture as it is then."""
        self.keep_partial = self.stopping = True

    def skip(self) -> None:
        """Keep the pictures that are being drawn as they are within a step; go on with others."""
        self.skipping = True

    async def watch(self, previews: bool = False) -> AsyncIterator[Status]:
        """Yield the status now and after each change, until the job has ended.

        A slow watcher misses some in between. previews: whether to have previews made.
        """
        event = asyncio.Event()
        own = (asyncio.get_running_loop(), event)
        with self._lock:
            self._waiting.add(own)
            self.watchers += previews
        try:
            seen = -1
            while True:
                event.clear()
                status, version = self.status, self.version
                if version != seen:
                    seen = version
                    yield status
                    if status.ended:
                        return
                    continue
                await event.wait()
        finally:
            with self._lock:
                self._waiting.discard(own)
                self.watchers -= previews

    async def finished(self) -> Status:
        """Wait for its end. Raises what it failed with, CancelledError if it was cancelled."""
        async for _ in self.watch():
            pass
        status = self.status
        if status.error is not None:
            raise status.error
        if status.state == "cancelled" and not status.pictures:
            raise CancelledError("the job was cancelled")
        return status
