"""The queue: clients take turns, picture by picture, and what one run can draw goes together."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ldm.request import LargeRequest
from ldm.server.errors import BusyError
from ldm.server.jobs import Job
from ldm.server.settings import Limits


@dataclass(frozen=True, eq=False)
class Unit:
    """One picture of a job, or the pictures that cannot be drawn apart."""

    job: Job
    request: LargeRequest

    @property
    def count(self) -> int:
        """How many pictures it is."""
        return self.request.count


class FairQueue:
    """Units by client: each client in turn gives the next one.

    A batch is the next unit, and then the others, in order of their turns, that the same run can
    draw; nobody's turn is later for it than it was.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._clients: OrderedDict[str, deque[Unit]] = OrderedDict()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._ready = threading.Condition()
        self._closed = False

    def add(self, job: Job) -> None:
        """Put a job into the queue. Raises BusyError if it is full or closed."""
        new = [Unit(job, request) for request in job.drawing.singles()]
        with self._ready:
            if self._closed:
                raise BusyError("the server is stopping; try again when it runs")
            jobs = self._jobs()
            mine = sum(each.client == job.client for each in jobs)
            if mine >= self.limits.waiting_each or len(jobs) >= self.limits.waiting:
                whose = "your jobs are" if mine >= self.limits.waiting_each else "jobs are"
                raise BusyError(
                    f"{mine or len(jobs)} {whose} waiting already; try again later", status=429
                )
            self._clients.setdefault(job.client, deque()).extend(new)
            self._tell_places()
            self._ready.notify()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Have the worker call a function between two batches. Raises BusyError if it is closed."""
        with self._ready:
            if self._closed:
                raise BusyError("the server is stopping; try again when it runs")
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
                if self._clients:
                    break
                if self._closed or not self._ready.wait(timeout):
                    return []
            batch: list[Unit] = []
            key, most = None, 1
            for unit in self._turns():
                if key is None:
                    key, most = unit.job.drawing.key, room(unit)
                elif unit.job.drawing.key != key or sum(u.count for u in batch) + unit.count > most:
                    continue
                batch.append(unit)
                if sum(u.count for u in batch) >= most:
                    break
            self._remove(batch)
            self._tell_places()
            return batch

    def close(self) -> None:
        """Take no more jobs; what waits is still handed out."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def __len__(self) -> int:
        """Return how many jobs wait."""
        with self._ready:
            return len(self._jobs())

    def _jobs(self) -> list[Job]:
        return list(dict.fromkeys(unit.job for units in self._clients.values() for unit in units))

    def _turns(self) -> list[Unit]:
        """Return all units in the order of their turns."""
        rows = list(self._clients.values())
        longest = max(map(len, rows), default=0)
        return [row[i] for i in range(longest) for row in rows if i < len(row)]

    def _remove(self, batch: list[Unit]) -> None:
        taken = set(map(id, batch))
        first = batch[0].job.client
        for client, units in list(self._clients.items()):
            left = deque(unit for unit in units if id(unit) not in taken)
            if left:
                self._clients[client] = left
            else:
                del self._clients[client]
        if first in self._clients:  # it has had its turn
            self._clients.move_to_end(first)

    def _drop_ended(self) -> None:
        """Drop the units of jobs that were cancelled, and end those that waited too long."""
        late = time.time() - self.limits.seconds
        for job in self._jobs():
            if job.status.state == "queued" and job.created < late:
                waited = f"the job waited {self.limits.seconds:.0f} s for its turn"
                job.update(state="failed", error=BusyError(f"{waited}; try again later"))
        for client, units in list(self._clients.items()):
            left = deque(unit for unit in units if not unit.job.status.ended)
            if left:
                self._clients[client] = left
            else:
                del self._clients[client]

    def _tell_places(self) -> None:
        before = 0
        seen: set[Job] = set()
        for unit in self._turns():
            if unit.job not in seen and unit.job.status.state == "queued":
                seen.add(unit.job)
                if unit.job.status.place != before:
                    unit.job.update(place=before)
            before += unit.count
