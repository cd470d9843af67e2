"""What the routes of all interfaces share."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from ldm.server.jobs import Job, Status
from ldm.server.shapes import words_of
from ldm.server.state import Server
from ldm.server.store import encode

EVENTS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def server_of(request: Request) -> Server:
    """Return the server that a request is to."""
    server: Server = request.app.state.server
    return server


def client_of(request: Request) -> str:
    """Return whose turn a request takes: its address, and the page that it is of."""
    host = request.client.host if request.client else "local"
    return f"{host}/{request.headers.get('x-client-id', '')[:64]}"


def data_url(data: bytes, kind: str = "png") -> str:
    """Return a picture's file as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def describe(server: Server, job: Job, status: Status, preview: bool = False) -> dict[str, Any]:
    """Describe a job in JSON. preview: with the newest one, if there is one."""
    pictures = server.stored(job, status)
    found: dict[str, Any] = {
        "id": job.id,
        "state": status.state,
        "place": status.place,
        "step": status.step,
        "steps": status.steps,
        "pictures": [
            {
                "id": stored.id,
                "url": f"/api/pictures/{stored.id}.png",
                "seed": stored.arguments.get("seed"),
                "width": stored.width,
                "height": stored.height,
            }
            for stored in pictures
        ],
        "error": None if status.error is None else words_of(status.error),
    }
    if warnings := sorted({stored.warning for stored in pictures if stored.warning}):
        found["warnings"] = warnings
    if preview and status.preview is not None:
        found["preview"] = data_url(encode(status.preview, "jpeg", quality=85), "jpeg")
    return found


def event(name: str, content: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n".encode()


async def job_events(
    server: Server, job: Job, cancel: bool, previews: bool = True
) -> AsyncIterator[bytes]:
    """Yield the events of a job: "status" after each change, and "end".

    cancel: whether the job is cancelled when the client leaves.
    previews: whether previews are made, each of which is in one event.
    """
    sent = None
    try:
        async for status in job.watch(previews):
            name = "end" if status.ended else "status"
            new = previews and status.preview is not sent
            sent = status.preview
            if status.pictures or (new and status.preview is not None):  # files are encoded
                content = await asyncio.to_thread(describe, server, job, status, new)
            else:
                content = describe(server, job, status)
            yield event(name, content)
    finally:
        if cancel and not job.status.ended:
            job.cancel()


def plain_json(value: Any) -> Any:
    """Return a value that any reader of JSON takes: no NaN, infinities or lone surrogates."""
    if isinstance(value, dict):
        return {plain_json(str(key)): plain_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def stream_of(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Answer with server-sent events."""
    return StreamingResponse(events, media_type="text/event-stream", headers=EVENTS)
