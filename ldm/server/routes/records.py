"""Records, ``/api/records/{job_id}``: the steps of a picture that was drawn with ``record``.

Views are computed in a thread of their own, one after another, between the worker's steps: only
the decoder is used, under the model's turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from ldm.server import record_views
from ldm.server.errors import BusyError
from ldm.server.recorder import Record
from ldm.server.routes.common import server_of
from ldm.server.state import Server

R = TypeVar("R")
NEVER_CHANGES = {"Cache-Control": "private, max-age=86400, immutable"}

router = APIRouter(prefix="/api/records", tags=["records"])
Picture = Annotated[int, Query(ge=0, description="which picture of the job, from 0")]


@router.get("/{job_id}")
async def get_record(request: Request, job_id: str, picture: Picture = 0) -> dict[str, Any]:
    """Describe how a picture came about: its steps with their noise levels, and its words."""
    return await compute(server_of(request), job_id, picture, record_views.describe)


@router.get("/{job_id}/steps/{step}/{view}.png", response_class=Response)
async def get_view(
    request: Request, job_id: str, step: int, view: str, picture: Picture = 0
) -> Response:
    """Return a step as a picture: x0, x0_uncond, x0_cond, x_rough, x_channels, difference, …"""
    data = await compute(
        server_of(request), job_id, picture, lambda record: record_views.view(record, step, view)
    )
    return Response(data, media_type="image/png", headers=NEVER_CHANGES)


@router.get("/{job_id}/steps/{step}")
async def get_numbers(
    request: Request, job_id: str, step: int, row: int = 0, column: int = 0, picture: Picture = 0
) -> dict[str, Any]:
    """Return the numbers of one latent pixel: x_t, the two predictions, the guided one, x̂₀."""
    return await compute(
        server_of(request),
        job_id,
        picture,
        lambda record: record_views.numbers(record, step, row, column),
    )


@router.get("/{job_id}/words/{word}.png", response_class=Response)
async def get_word(request: Request, job_id: str, word: int, picture: Picture = 0) -> Response:
    """Return where the attention of a word was, as a picture to lay over the one drawn."""
    data = await compute(
        server_of(request), job_id, picture, lambda record: record_views.word_overlay(record, word)
    )
    return Response(data, media_type="image/png", headers=NEVER_CHANGES)


async def compute(server: Server, job_id: str, picture: int, make: Callable[[Record], R]) -> R:
    """Compute a view of a record in the thread of views.

    Raises UnknownNameError without such a record, BusyError if too many views wait.
    """
    record = server.records.get(job_id, picture)
    if server.views_waiting >= server.limits.views:
        raise BusyError("too many views of steps are waiting; try again later", status=429)
    server.views_waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(server.viewer, make, record)
    finally:
        server.views_waiting -= 1
