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
from pydantic import Field

from ldm.server import record_views
from ldm.server.answers import Answer, errors
from ldm.server.errors import BusyError
from ldm.server.recorder import Record
from ldm.server.routes.common import server_of
from ldm.server.state import Server

R = TypeVar("R")
PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
ERRORS = errors(400, 404, 410, 507)
NEVER_CHANGES = {"Cache-Control": "private, max-age=86400, immutable"}

router = APIRouter(prefix="/api/records", tags=["records"])


class StepAnswer(Answer):
    """A step that is kept, and x_t before it: x_t = α x₀ + σ ε."""

    step: int
    t: float
    alpha: float
    sigma: float
    guided: bool
    latents: list[int] = Field(description="channels, height, width")


class WordAnswer(Answer):
    """A word of the prompt, and the most and the mean of its attention."""

    word: str
    most: float
    mean: float


class RecordAnswer(Answer):
    """How a picture came about."""

    model: str
    ended: bool = Field(description="whether nothing more is added")
    prediction_type: str = Field(description="what the network predicts, as diffusers names it")
    guidance_scale: float
    dtype: str = Field(description="that the network computes in")
    latents: list[int] = Field(description="channels, height, width")
    factor: int = Field(description="pixels along a side of a latent")
    small: bool = Field(description="whether views are decoded in no time")
    views: list[str]
    steps: list[StepAnswer]
    words: list[WordAnswer]


class NumbersAnswer(Answer):
    """One latent pixel at a step, a number for each channel."""

    row: int
    column: int
    x: list[float | None]
    uncond: list[float | None] | None = Field(description="null where nothing is guided")
    cond: list[float | None]
    guided: list[float | None]
    x0: list[float | None]
    scale: float | None
    rest: float | None = Field(description="the most of |guided − (uncond + s (cond − uncond))|")


Picture = Annotated[int, Query(ge=0, description="which picture of the job, from 0")]


@router.get("/{job_id}", response_model=RecordAnswer, responses=ERRORS)
async def get_record(request: Request, job_id: str, picture: Picture = 0) -> dict[str, Any]:
    """Describe how a picture came about: its steps with their noise levels, and its words."""
    return await compute(server_of(request), job_id, picture, record_views.describe)


@router.get("/{job_id}/steps/{step}/{view}.png", response_class=Response, responses=ERRORS | PNG)
async def get_view(
    request: Request, job_id: str, step: int, view: str, picture: Picture = 0
) -> Response:
    """Return a step as a picture: x0, x0_uncond, x0_cond, x_rough, x_channels, difference, …"""
    data = await compute(
        server_of(request), job_id, picture, lambda record: record_views.view(record, step, view)
    )
    return Response(data, media_type="image/png", headers=NEVER_CHANGES)


@router.get("/{job_id}/steps/{step}", response_model=NumbersAnswer, responses=ERRORS)
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


@router.get("/{job_id}/words/{word}.png", response_class=Response, responses=ERRORS | PNG)
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
