"""What OpenAI's image interface answers: pictures, events of a stream, models."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import Request
from PIL.Image import Image, Resampling
from pydantic import Field

from ldm.server import shapes
from ldm.server.answers import ERROR_WORDS, Answer
from ldm.server.drawing import size_of
from ldm.server.errors import CancelledError, ServerError, status_of
from ldm.server.jobs import Job, Status
from ldm.server.openai_api.bodies import GenerationBody, PicturesBody
from ldm.server.routes.common import event, words_of
from ldm.server.state import Server
from ldm.server.store import Stored, encode

Kind = Literal["image_generation", "image_edit"]
# Nothing is counted and nothing is billed; OpenAI's clients require the numbers of a stream's end.
NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


class ImageAnswer(Answer):
    """A picture; ``seed`` is ours."""

    b64_json: str | None = None
    url: str | None = None
    seed: int | None = None


class ImagesAnswer(Answer):
    """Pictures."""

    created: int
    data: list[ImageAnswer]
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    size: str


class ModelAnswer(Answer):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answer):
    """All models."""

    object: Literal["list"]
    data: list[ModelAnswer]


class OpenAIErrorWords(Answer):
    """What is wrong."""

    message: str
    type: str
    param: str | None = Field(description="the name of what is wrong, if it is an argument")
    code: str | None


class OpenAIError(Answer):
    """An error."""

    error: OpenAIErrorWords


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the answers for errors of a route, for FastAPI; 400, 401, 403 and 429 are of all."""
    return {
        status: {"model": OpenAIError, "description": ERROR_WORDS[status]}
        for status in sorted({*statuses, 400, 401, 403, 429})
    }


def images_answer(request: Request, pictures: list[Stored], body: PicturesBody) -> dict[str, Any]:
    """Return the answer with finished pictures."""
    quality = body.compression
    data = []
    for stored in pictures:
        seed = stored.arguments.get("seed")
        row: dict[str, Any] = {"seed": seed if isinstance(seed, int) else None}
        if body.response_format == "url":
            query = "" if quality is None else f"?quality={quality}"
            row["url"] = f"{request.base_url}api/pictures/{stored.id}.{body.format}{query}"
        else:
            row["b64_json"] = as_base64(stored.file(body.format, quality))
        data.append(row)
    return {
        "created": int(time.time()),
        "data": data,
        "background": "opaque",
        "output_format": body.format,
        "size": f"{pictures[0].width}x{pictures[0].height}",
    }


async def image_events(
    server: Server, job: Job, body: GenerationBody, kind: Kind
) -> AsyncIterator[bytes]:
    """Yield the events of a stream; who leaves has the job cancelled.

    The partial images are of the first picture that is drawn, spread evenly over its steps; a
    quick run has fewer.
    """
    wanted, partials, done = body.partial_images or 0, 0, 0
    shown: Image | None = None
    try:
        async for status in job.watch(previews=wanted > 0):
            if partials < wanted and status.preview not in (None, shown) and not done:
                shown = status.preview
                if status.step >= status.steps * partials / (wanted + 1):
                    yield await asyncio.to_thread(partial, server, job, body, kind, shown, partials)
                    partials += 1
            if len(status.pictures) > done:
                pictures = await asyncio.to_thread(server.stored, job, status)
                for stored in pictures[done:]:
                    yield await asyncio.to_thread(completed, stored, body, kind)
                done = len(pictures)
            if status.ended and (failure := failure_of(status)) is not None:
                yield failure
    finally:
        if not job.status.ended:
            job.cancel()


def failure_of(status: Status) -> bytes | None:
    """Return the event of a job that failed or was cancelled; None for one that did not."""
    error = status.error
    if error is None and status.state == "cancelled":
        error = CancelledError("the job was cancelled")
    if error is None:
        return None
    argument = error.argument if isinstance(error, ServerError) else None
    return event("error", shapes.openai(words_of(error), argument, status_of(error)))


def partial(
    server: Server,
    job: Job,
    body: GenerationBody,
    kind: Kind,
    preview: Image | None,
    number: int,
) -> bytes:
    """Return the event with a picture as it is now, at the size that it will have."""
    assert preview is not None
    width, height = size_of(job.drawing.request)
    pipe = server.model.pipe
    if pipe is not None and (width is None or height is None):
        own = pipe.default_size()
        width, height = width or own[1], height or own[0]
    if width and height and preview.width < width:
        preview = preview.resize((width, height), Resampling.BICUBIC)
    options = {} if body.compression is None else {"quality": body.compression}
    return event(
        f"{kind}.partial_image",
        {
            "type": f"{kind}.partial_image",
            "b64_json": as_base64(encode(preview, body.format, **options)),
            "partial_image_index": number,
            **common(preview.size, body),
        },
    )


def completed(stored: Stored, body: GenerationBody, kind: Kind) -> bytes:
    """Return the event with a finished picture."""
    return event(
        f"{kind}.completed",
        {
            "type": f"{kind}.completed",
            "b64_json": as_base64(stored.file(body.format, body.compression)),
            "usage": NO_USAGE,
            "seed": stored.arguments.get("seed"),
            **common((stored.width, stored.height), body),
        },
    )


def common(size: tuple[int, int], body: GenerationBody) -> dict[str, Any]:
    """Return what all events say."""
    return {
        "created_at": int(time.time()),
        "size": f"{size[0]}x{size[1]}",
        "quality": "medium" if body.quality == "medium" else "auto",
        "background": "opaque",
        "output_format": body.format,
    }


def as_base64(data: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(data).decode()
