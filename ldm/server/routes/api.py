"""Our own interface, ``/api``: a ``Request`` as JSON, jobs with events, pictures by id."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from ldm.server.errors import UnknownNameError
from ldm.server.jobs import Job
from ldm.server.routes.common import (
    client_of,
    describe,
    job_events,
    server_of,
    stream_of,
)
from ldm.server.schema import DrawingBody
from ldm.server.state import Server

router = APIRouter(prefix="/api", tags=["ldm"])


@router.post("/draw", response_class=StreamingResponse)
async def draw(request: Request, body: DrawingBody, previews: bool = True) -> StreamingResponse:
    """Draw, and send events until the end; whoever leaves has the job cancelled."""
    server = server_of(request)
    job = server.submit(body.drawing(server), client_of(request))
    return stream_of(job_events(server, job, cancel=True, previews=previews))


@router.post("/jobs", status_code=202)
async def create_job(request: Request, body: DrawingBody) -> dict[str, Any]:
    """Put a job into the queue."""
    server = server_of(request)
    job = server.submit(body.drawing(server), client_of(request))
    return describe(server, job, job.status)


@router.get("/jobs/{job_id}")
async def get_job(request: Request, job_id: str) -> dict[str, Any]:
    """Return how far a job is."""
    server = server_of(request)
    job = find_job(server, job_id)
    return describe(server, job, job.status)


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse)
async def get_events(request: Request, job_id: str) -> StreamingResponse:
    """Send events of a job until its end."""
    server = server_of(request)
    return stream_of(job_events(server, find_job(server, job_id), cancel=False))


@router.delete("/jobs/{job_id}")
async def cancel_job(request: Request, job_id: str) -> dict[str, Any]:
    """Cancel a job, which ends within a step."""
    server = server_of(request)
    job = find_job(server, job_id)
    job.cancel()
    return describe(server, job, job.status)


@router.get("/pictures/{picture_id}.png", response_class=Response)
async def get_picture(request: Request, picture_id: str) -> Response:
    """Return a picture, with its settings in it."""
    stored = server_of(request).pictures.get(picture_id)
    return Response(stored.data, media_type="image/png")


@router.get("/pictures/{picture_id}")
async def get_picture_settings(request: Request, picture_id: str) -> dict[str, Any]:
    """Return the settings of a picture."""
    stored = server_of(request).pictures.get(picture_id)
    return {
        "id": stored.id,
        "width": stored.width,
        "height": stored.height,
        "settings": stored.settings,
        "parameters": stored.parameters,
    }


@router.get("/models")
async def get_models(request: Request) -> dict[str, Any]:
    """List what can be chosen by name."""
    server = server_of(request)
    library = server.library
    return {
        "current": server.current,
        "models": list(library.models),
        "loras": list(library.loras),
        "embeddings": list(library.embeddings),
        "controlnets": list(library.controlnets),
    }


def find_job(server: Server, job_id: str) -> Job:
    """Return a job. Raises UnknownNameError."""
    if job_id not in server.jobs:
        raise UnknownNameError(f"there is no job {job_id!r:.60}", "job_id")
    return server.jobs[job_id]
