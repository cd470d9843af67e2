"""The worker: one thread that draws, batch by batch, with one device."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from PIL.Image import Image

from ldm.errors import LDMError
from ldm.output.record import with_records
from ldm.pipeline import Pipeline, Progress
from ldm.request import Request
from ldm.server.drawing import merged, plain_arguments
from ldm.server.jobs import Job
from ldm.server.models import LoadedModel, stream
from ldm.server.previews import decoded, preview
from ldm.server.queue import FairQueue, Unit
from ldm.server.settings import Limits

log = logging.getLogger(__name__)


class Worker(threading.Thread):
    """Draws what is in the queue until that is closed and empty, or ``stop`` is called."""

    def __init__(self, queue: FairQueue, model: LoadedModel, limits: Limits) -> None:
        super().__init__(name="ldm-worker", daemon=True)
        self.queue, self.model, self.limits = queue, model, limits
        self.drawing: list[Unit] = []  # now
        self.drawn = 0  # pictures
        self.busy_seconds = 0.0
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End after the step that is being computed; jobs that are not done are cancelled."""
        self._stopped.set()
        self.queue.close()

    def run(self) -> None:
        """Draw batch after batch."""
        while (units := self.queue.take(self.room)) or self.call():
            if self._stopped.is_set():
                for unit in units:
                    unit.job.cancel()
                continue
            if not units:
                continue
            self.drawing = units
            began = time.monotonic()
            try:
                self.draw(units)
            finally:
                self.drawing = []
                self.busy_seconds += time.monotonic() - began

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
        request, most = unit.request, self.limits.batch
        pipe = self.model.pipe
        if pipe is None or not unit.job.drawing.divisible:
            return max(1, unit.count)
        own = pipe.default_size()
        height, width = request.height or own[0], request.width or own[1]
        if request.image is not None and isinstance(request.image, Image):
            width, height = request.image.size
        scale = request.hires_scale if unit.job.drawing.hires else 1.0
        return max(1, min(most, int(self.limits.batch_pixels / (height * width * scale**2))))

    def draw(self, units: list[Unit]) -> None:
        """Draw a batch; an error fails the job that it is of, and no other."""
        units = [unit for unit in units if not unit.job.status.ended]
        if not units:
            return
        try:
            self.draw_together(units)
        except Exception as error:
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
        for job in batch.rows:
            job.update(state="drawing", place=0)
        arguments = merged([unit.request for unit in units])
        with contextlib.ExitStack() as stack:
            for job in batch.rows:
                if job.recorder is not None:
                    stack.enter_context(job.recorder.watching(batch.pipe))
            steps = stream(batch.pipe, units[0].job.drawing, arguments)
            if isinstance(steps, Iterator) and hasattr(steps, "close"):
                stack.callback(steps.close)
            for progress in steps:
                if self._stopped.is_set():
                    batch.cancel()
                batch.step(progress)
                if batch.over:
                    return
        self.drawn += sum(unit.count for unit in units)
        batch.finish(progress)


class Batch:
    """A run, and which of its rows are whose."""

    def __init__(self, units: list[Unit], pipe: Pipeline, limits: Limits) -> None:
        self.units, self.pipe, self.limits = units, pipe, limits
        self.rows: dict[Job, list[tuple[int, Unit]]] = {}  # first rows of the units of each job
        first = 0
        for unit in units:
            self.rows.setdefault(unit.job, []).append((first, unit))
            first += unit.count
        self.shown = dict.fromkeys(self.rows, 0.0)  # when each had its last preview
        self.done = {job: job.status.step for job in self.rows}

    @property
    def over(self) -> bool:
        """Whether nobody waits for these pictures any more."""
        return all(job.status.ended for job in self.rows)

    def cancel(self) -> None:
        """Cancel all jobs."""
        for job in self.rows:
            job.cancel()

    def step(self, progress: Progress) -> None:
        """Report a step to every job; end those that keep what there is now."""
        now = time.monotonic()
        for job, own in self.rows.items():
            if job.status.ended:
                continue
            rows = [row for start, unit in own for row in range(start, start + unit.count)]
            first = rows[0]
            if job.recorder is not None:
                job.recorder.step(self.pipe, progress, rows)
            changes: dict[str, object] = {
                "step": self.done[job] + progress.step * len(rows),
                "steps": progress.steps * job.drawing.request.count,
            }
            between = progress.output is None and progress.step
            if job.watchers and between and now - self.shown[job] >= self.limits.preview_seconds:
                self.shown[job] = now
                changes["preview"] = preview(self.pipe, progress.x0[first : first + 1])
            job.update(**changes)
            if between and job.stopping and job.keep_partial:
                self.hand_out(
                    job, dict(zip(rows, decoded(self.pipe, progress.x0[rows]), strict=True))
                )

    def finish(self, progress: Progress) -> None:
        """Hand the pictures out."""
        assert progress.output is not None and isinstance(progress.output.images, list)
        for job in self.rows:
            self.hand_out(job, dict(enumerate(progress.output.images)))

    def hand_out(self, job: Job, images: dict[int, Image]) -> None:
        """Give a job its pictures, by their rows; it ends with its last."""
        pictures = [*job.status.pictures]
        for first, unit in self.rows[job]:
            rows = range(first, first + unit.count)
            pictures += self.described(unit, [images[row] for row in rows])
        whole = job.stopping or len(pictures) >= job.drawing.request.count
        state = "done" if whole else "drawing"
        job.update(state=state, pictures=tuple(pictures), preview=None)

    def described(self, unit: Unit, images: list[Image]) -> list[Image]:
        """Return pictures with the settings that draw each of them alone."""
        request: Request = unit.request
        if not unit.job.drawing.divisible:
            return images  # drawn in a run of their own, which has described them
        if not unit.job.drawing.hires:
            request = Request(**plain_arguments(vars(request)))
        choice = self.pipe.choose_sampler(request.sampler, request.schedule)
        assert isinstance(request.seed, int)  # see ``Drawing.singles``
        return [*with_records(self.pipe, request, choice, images, [request.seed])]
