"""The parts of a server, put together: what its routes work with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ldm.server.drawing import Drawing, make_drawing
from ldm.server.errors import CancelledError
from ldm.server.jobs import Job, Recorder, Status
from ldm.server.library import Library
from ldm.server.models import LoadedModel
from ldm.server.queue import FairQueue
from ldm.server.recorder import JobRecorder, Records
from ldm.server.settings import Settings
from ldm.server.store import Pictures, Stored
from ldm.server.worker import Worker

MOST_JOBS = 4096  # whose status is kept after their end


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
        self.worker = Worker(self.queue, self.model, self.limits)
        self.pictures = Pictures(self.limits.kept_bytes, settings.output_dir)
        self.records = Records(self.limits.record_bytes)
        self.viewer = ThreadPoolExecutor(1, "ldm-views")  # which computes views of records
        self.views_waiting = 0
        self.jobs: dict[str, Job] = {}

    def start(self) -> None:
        """Load the first model, and begin to draw. Raises LDMError for a model that does not load.

        A server whose model is broken must not start.
        """
        self.model.load(self.current)
        self.worker.start()

    def stop(self) -> None:
        """End after the step that is being computed; every job that is not done is cancelled."""
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
        self, drawing: Drawing, client: str = "local", recorder: Recorder | None = None
    ) -> Job:
        """Put a job into the queue. Raises BusyError if it is full."""
        job = Job(drawing, client, recorder=recorder)
        if drawing.record and recorder is None:
            job.recorder = JobRecorder(self.records, job)
        self.queue.add(job)
        self.jobs[job.id] = job
        while len(self.jobs) > MOST_JOBS:
            oldest = next(iter(self.jobs))
            if not self.jobs[oldest].status.ended:
                break
            del self.jobs[oldest]
        return job

    def stored(self, job: Job, status: Status | None = None) -> list[Stored]:
        """Return the finished pictures of a job as files, which are kept."""
        pictures = (status or job.status).pictures
        draft = job.drawing.draft
        return [self.pictures.add(job.id, i, image, draft) for i, image in enumerate(pictures)]

    async def draw(
        self, drawing: Drawing, client: str, disconnected: Callable[[], Awaitable[bool]]
    ) -> tuple[Job, list[Stored]]:
        """Draw, and wait for the end; whoever disconnects has the job cancelled.

        disconnected: ``Request.is_disconnected`` of Starlette.
        Raises what the job failed with, CancelledError if it was cancelled.
        """
        job = self.submit(drawing, client)
        ending = asyncio.ensure_future(job.finished())
        try:
            while not (await asyncio.wait([ending], timeout=0.2))[0]:
                if await disconnected():
                    raise CancelledError("the client has left", status=499)
            status = ending.result()
        finally:
            if not ending.done():
                ending.cancel()
                job.cancel()
        return job, await asyncio.to_thread(self.stored, job, status)
