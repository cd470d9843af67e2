"""The worker: one thread that draws, batch by batch, with one device."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from ldm.errors import LDMError
from ldm.server.batch import Batch
from ldm.server.drawing import merged
from ldm.server.errors import BusyError, ServerError
from ldm.server.metrics import Metrics
from ldm.server.models import LoadedModel, stream
from ldm.server.queue import FairQueue, Unit
from ldm.server.settings import Limits

log = logging.getLogger(__name__)


class Worker(threading.Thread):
    """Draws what is in the queue until that is closed and empty, or ``stop`` is called."""

    def __init__(
        self, queue: FairQueue, model: LoadedModel, limits: Limits, metrics: Metrics
    ) -> None:
        super().__init__(name="ldm-worker", daemon=True)
        self.queue, self.model, self.limits, self.metrics = queue, model, limits, metrics
        self.drawing: list[Unit] = []  # now
        self.drawn = 0  # pictures
        self.steps = 0  # of all pictures
        self.unwanted_steps = 0  # of runs that nobody waited for any more
        self.busy_seconds = 0.0
        self.failure: ServerError | None = None  # why it has ended by itself
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End after the step that is being computed; jobs that are not done are cancelled."""
        self._stopped.set()
        self.queue.close()

    def run(self) -> None:
        """Draw batch after batch. If that cannot go on, all jobs fail, and new ones are refused."""
        try:
            self.draw_all()
        except BaseException as error:
            log.exception("the server draws no more")
            words = str(error) if isinstance(error, ServerError) else type(error).__name__
            self.failure = BusyError(f"the server draws no more ({words}); it must be restarted")
            self.queue.close(self.failure)
            self.queue.end_waiting(self.failure, begun=True)
            for unit in self.drawing:
                unit.job.update(state="failed", error=self.failure, preview=None)
        finally:
            self.drawing = []

    def draw_all(self) -> None:
        """Draw until the queue is closed and empty."""
        while (units := self.queue.take(self.room)) or self.call():
            if self._stopped.is_set():
                for unit in units:
                    unit.job.cancel()
                continue
            if not units:
                continue
            self.drawing = units
            began = time.monotonic()
            with self.model.lock:
                self.draw(units)
            self.drawing = []
            taken = time.monotonic() - began
            self.busy_seconds += taken
            served = {unit.job.client for unit in units if unit.job.status.state == "done"}
            most, share = self.limits.gather_seconds, self.limits.gather_share
            self.queue.gather(served, min(most, share * taken))

    def call(self) -> bool:
        """Call what waits for the model, such as loading another; whether there was anything."""
        calls = self.queue.take_calls()
        for future, function in calls:
            if self._stopped.is_set() or not future.set_running_or_notify_cancel():
                future.cancel()
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        return bool(calls)

    def room(self, unit: Unit) -> int:
        """Return how many pictures like that of a unit one run may draw."""
        drawing, pipe = unit.job.drawing, self.model.pipe
        if pipe is None or not drawing.divisible:
            return max(1, unit.count)
        fit = int(self.limits.batch_pixels / drawing.pixels(pipe))
        return max(1, min(self.limits.batch, fit))

    def draw(self, units: list[Unit]) -> None:
        """Draw a batch; an error fails the job that it is of, and no other."""
        units = [unit for unit in units if not unit.job.status.ended]
        if not units:
            return
        try:
            self.draw_together(units)
        except Exception as error:
            if not isinstance(error, LDMError | MemoryError):
                self.model.check_device()  # which is lost after some errors of CUDA
            jobs = list(dict.fromkeys(unit.job for unit in units))
            if len(jobs) > 1:  # to find which of them is wrong
                for job in jobs:
                    self.draw([unit for unit in units if unit.job is job])
                return
            if not isinstance(error, LDMError | MemoryError):
                log.exception("the job %s failed", jobs[0].id)
            jobs[0].update(state="failed", error=error, preview=None)

    def draw_together(self, units: list[Unit]) -> None:
        """Draw a batch in one run; raises what the run raises."""
        batch = Batch(units, self.model.prepare(units[0].job.drawing), self.limits)
        self.metrics.batches.observe(sum(unit.count for unit in units))
        for job in batch.rows:
            if job.status.state == "queued":
                self.metrics.waiting.observe(max(0.0, time.time() - job.created))
            job.update(state="drawing", place=0)
        arguments = merged([unit.request for unit in units])
        with contextlib.ExitStack() as stack:
            for job in batch.rows:
                if job.recorder is not None:
                    stack.enter_context(job.recorder.watching(batch.pipe))
            steps = stream(batch.pipe, units[0].job.drawing, arguments)
            if isinstance(steps, Iterator) and hasattr(steps, "close"):
                stack.callback(steps.close)
            last = 0
            for progress in steps:
                if self._stopped.is_set():
                    batch.cancel()
                if progress.step > last:
                    self.steps += batch.count
                    self.unwanted_steps += batch.over * batch.count
                last = progress.step
                batch.step(progress)
                if batch.over:
                    return
        self.drawn += sum(unit.count for unit in units)
        batch.finish(progress)
