"""Our own interface, ``/api``: a ``Request`` as JSON, jobs with events, pictures by id."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from ldm.server.answers import (
    DRAWING_ERRORS,
    JobAnswer,
    JobsAnswer,
    PictureAnswer,
    errors,
    stream_schema,
)
from ldm.server.errors import UnknownNameError
from ldm.server.jobs import Job
from ldm.server.routes.common import (
    client_of,
    describe,
    job_events,
    plain_json,
    server_of,
    stream_of,
)
from ldm.server.schema import DrawingBody
from ldm.server.state import Server

router = APIRouter(prefix="/api", tags=["ldm"])
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": stream_schema("JobAnswer", "status", "end"),
        "description": 'events "status" after each change and "end"; data: a JobAnswer, maybe with '
        "preview, a data URL",
    }
}
PREVIEWS = Query(description="whether events have previews, which take time")
QUALITY = Query(description="of JPEG and WebP, in [1, 100]", ge=1, le=100)
PICTURE_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            f"image/{kind}": {"schema": {"type": "string", "format": "binary"}}
            for kind in ("png", "jpeg", "webp")
        },
        "description": "the picture, with its settings in the file",
    }
}


async def submitted(request: Request, body: DrawingBody) -> Job:
    """Put what a body asks for into the queue; pictures are decoded beside the event loop."""
    server = server_of(request)
    drawing = await asyncio.to_thread(body.drawing, server)
    return server.submit(drawing, client_of(request))


async def described(server: Server, job: Job) -> dict[str, Any]:
    """Describe a job as it is now."""
    return await asyncio.to_thread(describe, server, job, job.status)


@router.post("/draw", response_class=StreamingResponse, responses=DRAWING_ERRORS | EVENTS)
async def draw(
    request: Request, body: DrawingBody, previews: Annotated[bool, PREVIEWS] = True
) -> StreamingResponse:
    """Draw, and send events until the end; whoever leaves has the job cancelled."""
    job = await submitted(request, body)
    return stream_of(job_events(server_of(request), job, True, previews))


@router.post("/jobs", status_code=202, response_model=JobAnswer, responses=DRAWING_ERRORS)
async def create_job(request: Request, body: DrawingBody) -> dict[str, Any]:
    """Put a job into the queue."""
    return await described(server_of(request), await submitted(request, body))


@router.get("/jobs", response_model=JobsAnswer, responses=errors())
async def list_jobs(
    request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    """List the jobs of this client, the newest first."""
    server, client = server_of(request), client_of(request)
    own = [job for job in list(server.jobs.values()) if job.client == client]
    return {"jobs": [await described(server, job) for job in reversed(own[-limit:])]}


@router.get("/jobs/{job_id}", response_model=JobAnswer, responses=errors(404))
async def get_job(request: Request, job_id: str) -> dict[str, Any]:
    """Return how far a job is."""
    server = server_of(request)
    return await described(server, find_job(server, job_id))


@router.get(
    "/jobs/{job_id}/events", response_class=StreamingResponse, responses=errors(404) | EVENTS
)
async def get_events(request: Request, job_id: str) -> StreamingResponse:
    """Send events of a job until its end."""
    server = server_of(request)
    return stream_of(job_events(server, find_job(server, job_id), cancel=False))


@router.delete("/jobs/{job_id}", response_model=JobAnswer, responses=errors(404))
async def cancel_job(request: Request, job_id: str) -> dict[str, Any]:
    """Cancel a job, which ends within a step."""
    server = server_of(request)
    job = find_job(server, job_id)
    job.cancel()
    return await described(server, job)


@router.post("/jobs/{job_id}/interrupt", response_model=JobAnswer, responses=errors(404))
async def interrupt_job(request: Request, job_id: str) -> dict[str, Any]:
    """End a job within a step, with its picture as it is then."""
    server = server_of(request)
    job = find_job(server, job_id)
    job.interrupt()
    return await described(server, job)


@router.get(
    "/pictures/{picture_id}.{format}",
    response_class=Response,
    responses=errors(404) | PICTURE_FILE,
)
async def get_picture(
    request: Request,
    picture_id: str,
    format: Literal["png", "jpeg", "webp"],
    quality: Annotated[int | None, QUALITY] = None,
) -> Response:
    """Return a picture's file, with its settings in it."""
    stored = server_of(request).pictures.get(picture_id)
    data = await asyncio.to_thread(stored.file, format, quality)
    return Response(data, media_type=f"image/{format}")


@router.get("/pictures/{picture_id}", response_model=PictureAnswer, responses=errors(404))
async def get_picture_settings(request: Request, picture_id: str) -> dict[str, Any]:
    """Return the settings of a picture."""
    stored = server_of(request).pictures.get(picture_id)
    return {
        "id": stored.id,
        "width": stored.width,
        "height": stored.height,
        "settings": plain_json(stored.settings),
        "parameters": plain_json(stored.parameters),
    }


def find_job(server: Server, job_id: str) -> Job:
    """Return a job. Raises UnknownNameError."""
    if job_id not in server.jobs:
        raise UnknownNameError(f"there is no job {job_id!r:.60}", "job_id")
    return server.jobs[job_id]
