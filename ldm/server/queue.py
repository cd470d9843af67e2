"""The queue: clients take turns, picture by picture, and what one run can draw goes together."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ldm.request import LargeRequest
from ldm.server.errors import BusyError, ServerError
from ldm.server.jobs import Job
from ldm.server.settings import Limits

SETTLE, MOST_SETTLE = 0.006, 0.04  # seconds: see ``FairQueue._pause``
PLACES_SHARE = 0.05  # of the time, for looking at the places of all jobs


@dataclass(frozen=True, eq=False)
class Unit:
    """One picture of a job, or the pictures that cannot be drawn apart."""

    job: Job
    request: LargeRequest

    @property
    def count(self) -> int:
        """How many pictures it is."""
        return self.request.count


@dataclass(eq=False)
class Waiting:
    """A job in the queue; its units are made when they are taken."""

    job: Job
    left: int = 0  # units
    weight: int = 1  # pictures of each unit
    _requests: Iterator[LargeRequest] = field(init=False)

    def __post_init__(self) -> None:
        drawing = self.job.drawing
        singles = drawing.singles()
        self._requests = chain([next(singles)], singles)  # which raises here what is wrong with it
        count = drawing.request.count
        self.left, self.weight = (count, 1) if drawing.divisible else (1, count)

    def take(self) -> Unit:
        """Take the next unit out."""
        self.left -= 1
        return Unit(self.job, next(self._requests))


class FairQueue:
    """Jobs by client: each client in turn gives the next picture.

    A batch is the next unit, and then the others, in order of their turns, that the same run can
    draw; nobody's turn is later for it than it was. To add a job and to take a batch cost as much
    as there are jobs, not pictures.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._clients: OrderedDict[str, list[Waiting]] = OrderedDict()  # none of them is empty
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._ready = threading.Condition()
        self._closed: ServerError | None = None  # why
        self._places_next = 0.0  # when these are looked at again
        self._served: set[str] = set()  # who may come back at once
        self._gather_until = 0.0
        self._first_added = self._last_added = 0.0  # since the queue was empty; when

    def add(self, job: Job) -> None:
        """Put a job into the queue. Raises BusyError if it is full or closed."""
        waiting = Waiting(job)  # which raises here what is wrong with it
        with self._ready:
            if self._closed is not None:
                raise self._closed
            if self._full(job.client):
                self._drop_ended()
            if words := self._full(job.client):
                raise BusyError(f"{words} waiting already; try again later", status=429)
            self._last_added = time.monotonic()
            if not self._clients:
                self._first_added = self._last_added
            self._clients.setdefault(job.client, []).append(waiting)
            if place := self._place(job.client):
                job.update(place=place)
            self._ready.notify()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Have the worker call a function between two batches. Raises BusyError if it is closed."""
        with self._ready:
            if self._closed is not None:
                raise self._closed
            future: Future[Any] = Future()
            self._calls.append((future, function))
            self._ready.notify()
            return future

    def take_calls(self) -> list[tuple[Future[Any], Callable[[], Any]]]:
        """Take out what is to be called before the next batch."""
        with self._ready:
            calls = list(self._calls)
            self._calls.clear()
            return calls

    def take(self, room: Callable[[Unit], int], timeout: float | None = None) -> list[Unit]:
        """Wait for the next batch, and take it out; [] when the queue is closed and empty.

        It is [], too, when there is something to call. room: how many pictures like that of a unit
        one run may draw.
        """
        with self._ready:
            while True:
                self._drop_ended()
                if self._calls:
                    return []
                pause = self._pause()
                if self._clients and pause <= 0:
                    break
                if self._clients:
                    self._ready.wait(pause)
                elif self._closed is not None or not self._ready.wait(timeout):
                    return []
            batch = self._take_batch(room)
            self._gather_until = 0.0
            self._update_places()
            return batch

    def gather(self, clients: set[str], seconds: float) -> None:
        """Let clients that have just got their pictures come back before the next batch is taken.

        Of clients that send a request when the last one is answered, the first to come back would
        be drawn alone while the others are on their way, and whoever has many jobs waiting would
        get every second batch for himself. ``take`` waits no longer than until all are there.
        """
        with self._ready:
            self._served = clients
            self._gather_until = time.monotonic() + seconds

    def close(self, why: ServerError | None = None) -> None:
        """Take no more jobs; what waits is still handed out. why: what new ones are told."""
        with self._ready:
            self._closed = why or BusyError("the server is stopping; try again when it runs")
            self._gather_until = 0.0
            self._ready.notify_all()

    def end_waiting(self, error: ServerError, begun: bool = False) -> None:
        """End the jobs that wait, with an error. begun: also those of which a part is drawn."""
        with self._ready:
            for own in self._clients.values():
                for waiting in own:
                    job = waiting.job
                    if begun or job.status.state == "queued":
                        state = "failed" if begun else "cancelled"
                        job.update(state=state, error=error, preview=None)

    def __len__(self) -> int:
        """Return how many jobs wait."""
        with self._ready:
            return sum(map(len, self._clients.values()))

    def _full(self, client: str) -> str:
        """Return what there is too much of; "" if there is room."""
        mine, all_of_them = (
            len(self._clients.get(client, ())),
            sum(map(len, self._clients.values())),
        )
        if mine >= self.limits.waiting_each:
            return f"{mine} your jobs are"
        return f"{all_of_them} jobs are" if all_of_them >= self.limits.waiting else ""

    def _pause(self) -> float:
        """Return the seconds to wait for more jobs before the next batch; 0 or less for none.

        Those who were served may come back (``gather``), and of several who ask at the same moment,
        the first would be drawn alone: what comes to an empty queue waits until nothing more has
        come for ``SETTLE``, and ``MOST_SETTLE`` at most.
        """
        if self._closed is not None or len(self._clients) >= self.limits.batch:
            return 0.0
        until = min(self._last_added + SETTLE, self._first_added + MOST_SETTLE)
        if not self._served <= self._clients.keys():
            until = max(until, self._gather_until)
        return until - time.monotonic()

    def _take_batch(self, room: Callable[[Unit], int]) -> list[Unit]:
        """Take the next unit, and what the same run can draw."""
        client, own = next(iter(self._clients.items()))
        first = own[0]
        batch = [first.take()]
        most = room(batch[0]) - first.weight
        if most > 0 and first.job.drawing.divisible:
            turns = self._turns_of(first.job.drawing.key, most)
            batch += [waiting.take() for _, _, waiting in turns[:most]]
        for each in list(self._clients):
            self._clients[each] = [waiting for waiting in self._clients[each] if waiting.left]
            if not self._clients[each]:
                del self._clients[each]
        if client in self._clients:  # it has had its turn
            self._clients.move_to_end(client)
        return batch

    def _turns_of(self, key: object, most: int) -> list[tuple[int, int, Waiting]]:
        """Return what one run can draw: (round, place in it, job), in the order of the turns.

        It holds the first ``most`` of each client. The first unit of all has been taken out, so
        that its client is a round behind.
        """
        found: list[tuple[int, int, Waiting]] = []
        for order, own in enumerate(self._clients.values()):
            turn, room = int(order == 0), most
            for waiting in own:
                if not room:
                    break
                if waiting.job.drawing.key == key:
                    count = min(room, waiting.left)
                    found += [(turn + i, order, waiting) for i in range(count)]
                    room -= count
                turn += waiting.left
        return sorted(found, key=lambda one: one[:2])

    def _drop_ended(self) -> None:
        """Drop the jobs that were cancelled, and end those that waited too long."""
        late = time.time() - self.limits.seconds
        for client, own in list(self._clients.items()):
            for waiting in own:
                job = waiting.job
                if job.status.state == "queued" and job.created < late:
                    waited = f"the job waited {self.limits.seconds:.0f} s for its turn"
                    job.update(state="failed", error=BusyError(f"{waited}; try again later"))
            if any(waiting.job.status.ended for waiting in own):
                own = [waiting for waiting in own if not waiting.job.status.ended]
                self._clients[client] = own
            if not own:
                del self._clients[client]

    def _place(self, client: str) -> int:
        """Return how many pictures are drawn before the last job of a client."""
        ahead = self._clients[client][:-1]
        turn = sum(waiting.left for waiting in ahead)
        before = sum(waiting.left * waiting.weight for waiting in ahead)
        earlier = True
        for other, own in self._clients.items():
            if other == client:
                earlier = False
                continue
            rounds = turn + earlier
            for waiting in own:
                if not rounds:
                    break
                count = min(rounds, waiting.left)
                before += count * waiting.weight
                rounds -= count
        return before

    def _update_places(self) -> None:
        """Update the places of all jobs; of a long queue, which takes long, not every time."""
        began = time.monotonic()
        if began < self._places_next:
            return
        before = 0
        rows = [iter(self._weights(own)) for own in self._clients.values()]
        while rows:
            left = []
            for row in rows:
                following = next(row, None)
                if following is None:
                    continue
                weight, job = following
                if job is not None and job.status.state == "queued" and job.status.place != before:
                    job.update(place=before)
                before += weight
                left.append(row)
            rows = left
        now = time.monotonic()
        self._places_next = now + (now - began) / PLACES_SHARE

    @staticmethod
    def _weights(own: list[Waiting]) -> Iterator[tuple[int, Job | None]]:
        """Yield the pictures of each unit of a client, with the job before its first one."""
        for waiting in own:
            yield waiting.weight, waiting.job
            for _ in range(waiting.left - 1):
                yield waiting.weight, None
