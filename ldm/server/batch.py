"""A run of the worker: a batch of pictures, and whose each of them is."""

from __future__ import annotations

import json
import time

from PIL.Image import Image

from ldm.images.picture import Picture
from ldm.images.text_fields import OURS, PARAMETERS
from ldm.output.record import with_records
from ldm.pipeline import Pipeline, Progress
from ldm.request import Request
from ldm.server.drawing import plain_arguments, seeds_of
from ldm.server.jobs import Job
from ldm.server.previews import decoded, is_small, rough
from ldm.server.queue import Unit
from ldm.server.settings import Limits
from ldm.techniques.masked_region import MaskedRegion


class Batch:
    """A run, and which of its rows are whose."""

    def __init__(self, units: list[Unit], pipe: Pipeline, limits: Limits) -> None:
        self.units, self.pipe, self.limits = units, pipe, limits
        self.rows: dict[Job, list[tuple[int, Unit]]] = {}  # first rows of the units of each job
        first = 0
        for unit in units:
            self.rows.setdefault(unit.job, []).append((first, unit))
            first += unit.count
        self.count = first  # pictures
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
            rows = [row for start, unit in own for row in range(start, start + unit.count)]
            if job.recorder is not None:
                job.recorder.step(self.pipe, progress, rows)
            job.update(
                step=self.done[job] + progress.step * len(rows),
                steps=progress.steps * job.drawing.request.count,
            )
            between = progress.output is None and progress.step
            skipping, job.skipping = job.skipping and bool(between), False
            if skipping:
                self.skipped.add(job)
            if between and (skipping or (job.stopping and job.keep_partial)):
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
