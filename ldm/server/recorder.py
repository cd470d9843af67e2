"""Records of how pictures came about: their steps, guidance's predictions, the words' attention.

A job with ``Drawing.record`` has one for each of its pictures. Recording observes what the run
computes anyway (``ldm.techniques.predictions``, ``attention_maps``): pictures stay bit-identical.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ldm.denoiser import Predictions
from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline, Progress
from ldm.scheduler import Level
from ldm.server.errors import ServerError, UnknownNameError
from ldm.techniques.attention_maps import AttentionMaps
from ldm.techniques.predictions import observe_predictions

if TYPE_CHECKING:
    from ldm.server.jobs import Job

SHARE = 2  # one picture's record takes at most this part of the memory of all


class Step(NamedTuple):
    """One step of a picture; tensors are (C, h, w), float32, on the CPU.

    Attributes:
        number: from 1. x: before the step. x0: the estimate that the step went towards.
        uncond, cond, guided: what the network predicts, see ``ldm.denoiser.Predictions``; of a
            method of second order, at its first call in the step.
    """

    number: int
    level: Level
    x: Tensor
    uncond: Tensor | None
    cond: Tensor
    guided: Tensor
    x0: Tensor

    @property
    def bytes(self) -> int:
        """How much memory it takes."""
        return sum(part.nbytes for part in self if isinstance(part, Tensor))


@dataclass(eq=False)
class Record:
    """How one picture came about.

    Attributes:
        model_name: in the library. scale: of guidance.
        dtype: of the predictions, before they were copied.
        steps: those that are kept, by their numbers: every ``stride``th and the last.
        words: each word of the prompt and where its attention was, (h, w).
        ended: whether nothing more is added.
    """

    model_name: str
    pipe: weakref.ref[Pipeline]
    scale: float
    dtype: torch.dtype = torch.float32
    steps: dict[int, Step] = field(default_factory=dict)
    stride: int = 1
    words: list[tuple[str, Tensor]] = field(default_factory=list)
    ended: bool = False

    @property
    def bytes(self) -> int:
        """How much memory it takes."""
        return sum(s.bytes for s in [*self.steps.values()]) + sum(m.nbytes for _, m in self.words)

    def add(self, step: Step, most: int) -> None:
        """Add the newest step; while they take more than ``most``, leave every second one out."""
        before = max(self.steps, default=0)
        if before % self.stride:  # it was kept as the last
            del self.steps[before]
        self.steps[step.number] = step
        while self.bytes > most and len(self.steps) > 1:
            self.stride *= 2
            last = step.number
            self.steps = {n: s for n, s in self.steps.items() if n % self.stride == 0 or n == last}

    def step(self, number: int) -> Step:
        """Return a step. Raises UnknownNameError for one that is not kept."""
        if number not in self.steps:
            kept = ", ".join(map(str, self.steps))
            raise UnknownNameError(f"step {number} is not kept; there are: {kept}", "step")
        return self.steps[number]

    def model(self) -> Pipeline:
        """Return the model that drew it. Raises ServerError when another has been loaded."""
        pipe = self.pipe()
        if pipe is None:
            raise ServerError(
                f"the model {self.model_name!r}, which drew this picture, is no longer loaded; "
                "draw the picture again",
                status=410,
            )
        return pipe


class Records:
    """The newest records, by the job's id and the picture's number; any thread may call it."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[tuple[str, int], Record] = OrderedDict()
        self._lock = threading.Lock()

    def add_step(self, key: tuple[str, int], record: Record, step: Step) -> None:
        """Add a step to a record, which becomes the newest; the oldest records are dropped."""
        with self._lock:
            record.add(step, self.most_bytes // SHARE)
            self._keep(key, record)

    def end(self, key: tuple[str, int], record: Record, words: list[tuple[str, Tensor]]) -> None:
        """End a record."""
        with self._lock:
            record.words, record.ended = words, True
            if key in self._kept:
                self._keep(key, record)

    def drop(self, key: tuple[str, int]) -> None:
        """Drop a record, of a run that failed."""
        with self._lock:
            self._kept.pop(key, None)

    def _keep(self, key: tuple[str, int], record: Record) -> None:
        self._kept[key] = record
        self._kept.move_to_end(key)
        total = sum(each.bytes for each in self._kept.values())
        while total > self.most_bytes:  # even of the newest, if a single step is too large
            _, oldest = self._kept.popitem(last=False)
            total -= oldest.bytes

    @property
    def bytes(self) -> int:
        """How much memory all records take."""
        with self._lock:
            return sum(record.bytes for record in self._kept.values())

    def get(self, job_id: str, picture: int = 0) -> Record:
        """Return a record. Raises UnknownNameError if it is not, or no longer, there."""
        with self._lock:
            if (job_id, picture) not in self._kept:
                raise UnknownNameError(
                    f"there is no record of picture {picture} of the job {job_id!r:.60}: it was "
                    "drawn without record, or newer ones took its place; draw it again with "
                    "record true",
                    "job_id",
                )
            return self._kept[job_id, picture]


class JobRecorder:
    """Records the pictures of one job: what ``ldm.server.jobs.Recorder`` describes."""

    def __init__(self, records: Records, job: Job) -> None:
        self.records, self.job = records, job
        self._seen: Predictions | None = None  # the first of the present step
        self._dtype = torch.float32
        self._now: dict[int, tuple[tuple[str, int], Record]] = {}  # by row of the batch

    @contextlib.contextmanager
    def watching(self, pipe: Pipeline) -> Iterator[None]:
        """Observe the pictures that are drawn inside; of those that fail, nothing is kept."""
        self._seen, self._now = None, {}
        watch = pipe.explain() if self._words_fit(pipe) else contextlib.nullcontext()
        try:
            with watch as attention, observe_predictions(pipe.unet, self._observe):
                yield
            for row, (key, record) in self._now.items():
                self.records.end(key, record, words_of(attention, row))
        except BaseException:
            for key, _ in self._now.values():
                self.records.drop(key)
            raise
        finally:
            self._seen, self._now = None, {}

    def step(self, pipe: Pipeline, progress: Progress, rows: Sequence[int]) -> None:
        """Record a step of these rows of the batch."""
        seen, self._seen = self._seen, None
        if seen is None:  # nothing was drawn: the strength is 0
            return
        done = len(self.job.status.pictures)
        for i, row in enumerate(rows):
            if row not in self._now:
                scale = self.job.drawing.request.guidance_scale
                scale = pipe.defaults.guidance_scale if scale is None else scale
                name = self.job.drawing.model
                record = Record(name, weakref.ref(pipe), scale, self._dtype)
                self._now[row] = (self.job.id, done + i), record
            key, record = self._now[row]
            self.records.add_step(key, record, step_of(progress, seen, row))

    def _observe(self, seen: Predictions) -> None:
        if self._seen is None:  # copies, as the run goes on with these tensors
            self._dtype = seen.cond.dtype
            self._seen = Predictions(
                copied(seen.x),
                seen.level,
                None if seen.uncond is None else copied(seen.uncond),
                copied(seen.cond),
                copied(seen.guided),
            )

    def _words_fit(self, pipe: Pipeline) -> bool:
        """Return whether the model reads words, and maps of all of them fit into the memory."""
        if not pipe.text_models:
            return False
        drawing, factor = self.job.drawing, pipe.vae.config.scale
        letters = max(map(len, drawing.request.prompts))
        maps = (letters // 2 + 77) * drawing.pixels(pipe) / factor**2
        return 4 * maps < self.records.most_bytes / SHARE


def step_of(progress: Progress, seen: Predictions, row: int) -> Step:
    """Return what was seen of a row of the batch."""
    return Step(
        progress.step,
        seen.level,
        seen.x[row].clone(),
        None if seen.uncond is None else seen.uncond[row].clone(),
        seen.cond[row].clone(),
        seen.guided[row].clone(),
        copied(progress.x0[row]),
    )


def copied(x: Tensor) -> Tensor:
    """Return a copy on the CPU, float32."""
    return x.detach().to("cpu", torch.float32, copy=True)


def words_of(attention: AttentionMaps | None, row: int) -> list[tuple[str, Tensor]]:
    """Return the words of a picture's texts and where each looked; [] without any."""
    if attention is None:
        return []
    try:
        return [(word, heat.float().cpu()) for word, heat in attention.words(picture=row)]
    except ArgumentError:  # the run ended before its first step
        return []
