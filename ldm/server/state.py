"""The parts of a server, put together: what its routes work with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ldm.server.drawing import Drawing, given_pictures, make_drawing
from ldm.server.errors import BusyError, CancelledError
from ldm.server.jobs import Job, Recorder, Status
from ldm.server.library import Library
from ldm.server.metrics import Metrics
from ldm.server.models import LoadedModel
from ldm.server.queue import FairQueue
from ldm.server.recorder import JobRecorder, Records
from ldm.server.settings import Settings
from ldm.server.store import Pictures, Stored
from ldm.server.worker import Worker

MOST_JOBS = 4096  # whose status is kept after their end
STOPPING = "the server is stopping; try again when it runs"
LEFT_QUEUED, LEFT_DRAWING = 0.2, 0.02  # seconds between two looks at whether a client has left


class Server:
    """One device, its queue and its worker.

    Attributes:
        jobs: by id, the newest last. current: the name of the model of requests that name none.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.library = Library(settings)
        self.current = self.library.first
        self.model = LoadedModel(self.library)
        self.queue = FairQueue(self.limits)
        self.metrics = Metrics()
        self.worker = Worker(self.queue, self.model, self.limits, self.metrics)
        self.pictures = Pictures(self.limits.kept_bytes, settings.output_dir)
        self.records = Records(self.limits.record_bytes)
        self.viewer = ThreadPoolExecutor(1, "ldm-views")  # which computes views of records
        self.views_waiting = 0
        self.jobs: dict[str, Job] = {}
        self.stopping = False
        self._picture_bytes: dict[str, int] = {}  # of the jobs that have ended
        self.metrics.watch(self)

    def start(self) -> None:
        """Load the first model, and begin to draw. Raises LDMError for a model that does not load.

        A server whose model is broken must not start.
        """
        self.load_first()
        self.worker.start()

    def load_first(self) -> None:
        """Load the first model in a thread of its own, which ends. Raises LDMError.

        OpenMP keeps the threads of every thread that computes. Were the main thread's kept beside
        the worker's, they would be more than the cores, and all would sleep while they wait (see
        ``ldm.fast.waiting``): a picture of the built-in model took 0.48 s, not 0.29.
        """
        with ThreadPoolExecutor(1, "ldm-loading") as loading:
            loading.submit(self.model.load, self.current).result()

    def trouble(self) -> str | None:
        """Return why it draws nothing; None if it does."""
        if self.worker.failure is not None:
            return str(self.worker.failure)
        if self.stopping:
            return STOPPING
        return None if self.worker.is_alive() else "the model is being loaded"

    def drain(self) -> None:
        """Take no more jobs, end those that wait, and finish those that are drawn.

        The worker ends after them.
        """
        self.stopping = True
        error = BusyError(STOPPING)
        self.queue.close(error)
        self.queue.end_waiting(error)

    def cancel_all(self) -> None:
        """End every job within a step: the time to finish them is over."""
        for unit in self.worker.drawing:
            error = BusyError("the server has stopped before the picture was done")
            unit.job.stopping = True
            unit.job.update(state="cancelled", error=error, preview=None)
        self.worker.stop()

    def stop(self) -> None:
        """End after the step that is being computed; every job that is not done is cancelled."""
        self.stopping = True
        self.worker.stop()
        if self.worker.is_alive():
            self.worker.join()
        self.viewer.shutdown(cancel_futures=True)

    def make_drawing(self, arguments: dict[str, Any], **options: Any) -> Drawing:
        """See ``ldm.server.drawing.make_drawing``."""
        options["model"] = options.get("model") or self.current
        return make_drawing(self.library, self.limits, arguments, **options)

    async def switch(self, name: str) -> str:
        """Load a model in the worker's turn; it draws what names none. Return its listed name.

        Raises UnknownNameError, BusyError, and CheckpointError for one that does not load.
        """
        listed = self.library.model(name)
        await asyncio.wrap_future(self.queue.call(lambda: self.model.load(listed)))
        self.current = listed
        return listed

    def submit(
        self,
        drawing: Drawing,
        client: str = "local",
        recorder: Recorder | None = None,
        details: dict[str, Any] | None = None,
    ) -> Job:
        """Put a job into the queue. Raises BusyError if it is full.

        details: see ``Job``.
        """
        job = Job(drawing, client, recorder=recorder, details=details or {}, on_end=self._ended)
        if drawing.record and recorder is None:
            job.recorder = JobRecorder(self.records, job)
        self.queue.add(job)
        self.jobs[job.id] = job
        self._forget()
        return job

    def _ended(self, job: Job) -> None:
        self.metrics.ended(job)
        pictures = [*job.status.pictures, *given_pictures(job.drawing.request)]
        self._picture_bytes[job.id] = sum(3 * image.width * image.height for image in pictures)

    def _forget(self) -> None:
        """Forget the oldest jobs that have ended if there are many, or their pictures are large."""
        kept = sum(self._picture_bytes.values())
        for name, size in list(self._picture_bytes.items()):
            if len(self.jobs) <= MOST_JOBS and kept <= self.limits.kept_bytes:
                break
            kept -= size
            del self._picture_bytes[name]
            self.jobs.pop(name, None)

    def stored(self, job: Job, status: Status | None = None) -> list[Stored]:
        """Return the finished pictures of a job as files, which are kept."""
        pictures = (status or job.status).pictures
        draft = job.drawing.draft
        return [self.pictures.add(job.id, i, image, draft) for i, image in enumerate(pictures)]

    async def draw(
        self,
        drawing: Drawing,
        client: str,
        disconnected: Callable[[], Awaitable[bool]],
        details: dict[str, Any] | None = None,
    ) -> tuple[Job, list[Stored]]:
        """Draw, and wait for the end; whoever disconnects has the job cancelled.

        disconnected: ``Request.is_disconnected`` of Starlette. details: see ``Job``.
        Raises what the job failed with, CancelledError if it was cancelled.
        """
        job = self.submit(drawing, client, details=details)
        ending = asyncio.ensure_future(job.finished())
        try:
            while not (await asyncio.wait([ending], timeout=between(job)))[0]:
                if await disconnected():
                    raise CancelledError("the client has left", status=499)
            status = ending.result()
        finally:
            if not ending.done():
                ending.cancel()
                job.cancel()
        return job, await asyncio.to_thread(self.stored, job, status)


def between(job: Job) -> float:
    """Return the seconds to the next look at whether a job's client has left."""
    return LEFT_DRAWING if job.status.state == "drawing" else LEFT_QUEUED
