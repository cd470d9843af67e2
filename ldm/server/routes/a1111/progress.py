"""``progress``, ``interrupt`` and ``skip``: of the pictures that the client waits for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from fastapi import Request

from ldm.server.jobs import Job
from ldm.server.routes.a1111.answers import make_router, to_base64
from ldm.server.routes.a1111.results import INTERFACE
from ldm.server.routes.common import client_of, server_of
from ldm.server.store import encode

router = make_router()
FIRST_PREVIEW = 0.25  # seconds to wait for one
WATCHED, SEEN = "a1111_watch", "a1111_seen"  # of a job's details


def own_jobs(request: Request) -> list[Job]:
    """Return the client's jobs that have not ended, the oldest first."""
    client = client_of(request)
    return [
        job
        for job in list(server_of(request).jobs.values())
        if job.client == client
        and job.details.get("interface") == INTERFACE
        and not job.status.ended
    ]


@router.get("/progress")
async def get_progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """Return how far the client's pictures are, with a preview of the one that is being drawn."""
    jobs = own_jobs(request)
    job = next((job for job in jobs if job.status.state == "drawing"), jobs[0] if jobs else None)
    if job is None:
        return {
            "progress": 0.0,
            "eta_relative": 0.0,
            "state": state_of(None),
            "current_image": None,
            "textinfo": None,
        }
    if not skip_current_image:
        await watch(job)
    status = job.status
    waiting = f"Waiting: {status.place} pictures of others are before yours"
    preview = None if skip_current_image or status.preview is None else status.preview
    return {
        "progress": progress_of(job),
        "eta_relative": time_left(job),
        "state": state_of(job),
        "current_image": None if preview is None else to_base64(encode(preview)),
        "textinfo": waiting if status.state == "queued" else None,
    }


async def watch(job: Job) -> None:
    """Have previews made until the job's end; wait a moment for the first one."""
    if WATCHED not in job.details:
        job.details[WATCHED] = asyncio.ensure_future(until_end(job))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(first_preview(job), FIRST_PREVIEW)


async def until_end(job: Job) -> None:
    """Watch a job."""
    async for _ in job.watch(previews=True):
        pass


async def first_preview(job: Job) -> None:
    """Wait for a preview."""
    async for status in job.watch():
        if status.preview is not None:
            return


def progress_of(job: Job) -> float:
    """Return how much of a job is done: above 0, as 0 is nothing to do."""
    status = job.status
    return min(max(status.step / status.steps if status.steps else 0.0, 0.01), 1.0)


def time_left(job: Job) -> float:
    """Estimate the seconds until a job's end, by its speed since it was first looked at."""
    now, status = time.time(), job.status
    if not status.steps:
        return 0.0
    began, step = job.details.setdefault(SEEN, (now, status.step))
    if status.step <= step:
        began, step = job.created, 0
    return max((now - began) * (status.steps - status.step) / max(status.step - step, 1), 0.0)


def state_of(job: Job | None) -> dict[str, Any]:
    """Return A1111's state of a job; None is nothing to do."""
    if job is None:
        return {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "",
            "job_count": 0,
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": 0,
            "sampling_steps": 0,
        }
    status, count = job.status, job.drawing.request.count
    each = status.steps // count
    return {
        "skipped": job.skipping,
        "interrupted": job.stopping,
        "stopping_generation": job.stopping,
        "job": f"{len(status.pictures)} of {count} pictures",
        "job_count": count,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
        "job_no": len(status.pictures),
        "sampling_step": min(status.step // count, each),
        "sampling_steps": each,
    }


@router.post("/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """End the client's pictures that are being drawn, as they are; cancel one that waits."""
    jobs = own_jobs(request)
    drawing = [job for job in jobs if job.status.state == "drawing"]
    for job in drawing:
        job.interrupt()
    if not drawing and jobs:
        jobs[0].cancel()
    return {}


@router.post("/skip")
async def skip(request: Request) -> None:
    """Keep the pictures that are being drawn as they are, and go on with the client's next."""
    for job in own_jobs(request):
        if job.status.state == "drawing":
            job.skip()
