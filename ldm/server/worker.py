"""The worker: one thread that draws, batch by batch, with one device."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator

from PIL.Image import Image

from ldm.errors import LDMError
from ldm.images.picture import Picture
from ldm.images.text_fields import OURS, PARAMETERS
from ldm.output.record import with_records
from ldm.pipeline import Pipeline, Progress
from ldm.request import Request
from ldm.server.drawing import merged, plain_arguments, seeds_of
from ldm.server.jobs import Job
from ldm.server.models import LoadedModel, stream
from ldm.server.previews import decoded, is_small, rough
from ldm.server.queue import FairQueue, Unit
from ldm.server.settings import Limits
from ldm.techniques.masked_region import MaskedRegion

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
                with self.model.lock:
                    self.draw(units)
            finally:
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
        self.began, self.previewing = time.monotonic(), 0.0
        self.decoding = 0.0  # how long a preview took to decode
        self.done = {job: job.status.step for job in self.rows}
        self.skipped: set[Job] = set()  # which have their pictures of this run

    @property
    def over(self) -> bool:
        """Whether nobody waits for these pictures any more."""
        return all(job.status.ended or job in self.skipped for job in self.rows)

    def cancel(self) -> None:
        """Cancel all jobs."""
        for job in self.rows:
            job.cancel()

    def step(self, progress: Progress) -> None:
        """Report a step to every job; end those that keep what there is now."""
        for job, own in self.rows.items():
            if job.status.ended or job in self.skipped:
                continue
            first, count = own[0][0], sum(unit.count for _, unit in own)
            if job.recorder is not None:
                job.recorder.step(self.pipe, progress, first, count)
            job.update(
                step=self.done[job] + progress.step * count,
                steps=progress.steps * job.drawing.request.count,
            )
            between = progress.output is None and progress.step
            skipping, job.skipping = job.skipping and bool(between), False
            if skipping:
                self.skipped.add(job)
            if between and (skipping or (job.stopping and job.keep_partial)):
                rows = [row for start, unit in own for row in range(start, start + unit.count)]
                self.hand_out(
                    job, dict(zip(rows, decoded(self.pipe, progress.x0[rows]), strict=True))
                )
        if progress.output is None and progress.step:
            self.show(progress)

    def show(self, progress: Progress) -> None:
        """Make previews for those who watch, the longest without one first.

        A job's first one is rough where there is no time to decode it; later ones are decoded.
        """
        now = time.monotonic()
        due = [
            job
            for job, shown in self.shown.items()
            if job.watchers
            and not (job.status.ended or job in self.skipped)
            and now - shown >= self.limits.preview_seconds
        ]
        small = is_small(self.pipe, progress.x0)
        for job in sorted(due, key=self.shown.__getitem__):
            first = self.rows[job][0][0]
            x0, began = progress.x0[first : first + 1], time.monotonic()
            if small and self.may_decode(began):
                job.update(preview=decoded(self.pipe, x0)[0])
                self.decoding = time.monotonic() - began
                self.previewing += self.decoding
            elif not small or not self.shown[job]:
                job.update(preview=rough(self.pipe, x0))
            else:
                continue
            self.shown[job] = time.monotonic()

    def may_decode(self, now: float) -> bool:
        """Whether previews have taken less than their share of the time, with one more."""
        if len(self.rows) == 1:
            share, next_one = self.limits.preview_share, 0.0  # the first comes at once
        else:
            share, next_one = self.limits.preview_share_together, self.decoding
        spent = self.previewing + next_one
        return spent <= share * (now - self.began - self.previewing)

    def finish(self, progress: Progress) -> None:
        """Hand the pictures out."""
        assert progress.output is not None and isinstance(progress.output.images, list)
        for job in self.rows.keys() - self.skipped:
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
        drawing = unit.job.drawing
        described: list[Image] = images  # by their own run, if it was not stopped
        if drawing.divisible or not isinstance(images[0], Picture):
            if not drawing.hires:
                request = Request(**plain_arguments(vars(request)))
            choice = self.pipe.choose_sampler(request.sampler, request.schedule)
            seeds = seeds_of(unit.request)
            described = [*with_records(self.pipe, request, choice, images, seeds)]
        region = drawing.region
        return described if region is None else [pasted(region, one) for one in described]


def pasted(region: MaskedRegion, picture: Image) -> Image:
    """Return the whole picture with a drawn part in it, and the part's settings."""
    text, settings = picture.info[PARAMETERS], json.loads(picture.info[OURS])
    before, comma, version = text.rpartition(", Version: ")
    area = f", Inpaint area: Only masked, Masked area padding: {region.padding}"
    settings["missing"] = [*settings.get("missing", ()), "region"]
    return Picture.of(region.paste(picture), f"{before}{area}{comma}{version}", settings)
