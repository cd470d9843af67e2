"""OpenAI's image interface, ``/v1``, as its own client speaks it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ldm.server.answers import stream_schema
from ldm.server.drawing import Drawing
from ldm.server.errors import ServerError
from ldm.server.openai_api.answers import (
    ImagesAnswer,
    Kind,
    ModelAnswer,
    ModelList,
    errors,
    image_events,
    images_answer,
)
from ldm.server.openai_api.bodies import (
    EditForm,
    GenerationBody,
    PicturesBody,
    VariationForm,
    edit_arguments,
    variation_arguments,
)
from ldm.server.openai_api.forms import KIND, read_form
from ldm.server.routes.common import client_of, server_of, stream_of
from ldm.server.schema import PICTURE_NAMES
from ldm.server.shapes import SafeJSON
from ldm.server.state import Server

router = APIRouter(prefix="/v1", tags=["OpenAI"])
ERRORS = errors(404, 409, 413, 422, 503, 507)


def stream_of_kind(kind: Kind) -> dict[int | str, dict[str, Any]]:
    """Describe the answer of a route that may stream."""
    names = (f"{kind}.partial_image", f"{kind}.completed", "error")
    about = "pictures, or events of a stream"
    return {200: {"content": stream_schema(None, *names), "description": about}}


def form_of(cls: type[PicturesBody], *required: str) -> dict[str, Any]:
    """Describe a form for the OpenAPI document: pictures are files."""
    schema = cls.model_json_schema(ref_template="#/components/schemas/{model}")
    file = {"type": "string", "format": "binary"}
    properties = {
        name: file if name in PICTURE_NAMES else each
        for name, each in schema["properties"].items()
        if name not in ("loras", "controlnets", "control_mode")  # as nested names; see README
    }
    if cls is EditForm:
        properties["mask"] = file | {"description": "transparent where to draw the image anew"}
    found = {"type": "object", "properties": properties, "required": list(required)}
    return {"requestBody": {"required": True, "content": {KIND: {"schema": found}}}}


@router.post(
    "/images/generations",
    response_model=ImagesAnswer,
    responses=ERRORS | stream_of_kind("image_generation"),
)
async def generations(request: Request, body: GenerationBody) -> Response:
    """Draw a prompt."""
    body.check()
    server = server_of(request)
    drawing = await asyncio.to_thread(body.drawing, server)
    return await drawn(request, drawing, body, "image_generation")


@router.post(
    "/images/edits",
    response_model=ImagesAnswer,
    responses=errors(404, 409, 413, 415, 422, 503, 507) | stream_of_kind("image_edit"),
    openapi_extra=form_of(EditForm, "image", "prompt"),
)
async def edits(request: Request) -> Response:
    """Draw an image anew, or where its mask is transparent."""
    server = server_of(request)
    form, files = await read_form(request, EditForm, server.limits.body)
    form.check()

    def make() -> Drawing:
        return server.make_drawing(edit_arguments(form, files, server), **form.options())

    return await drawn(request, await asyncio.to_thread(make), form, "image_edit")


@router.post(
    "/images/variations",
    response_model=ImagesAnswer,
    responses=errors(404, 409, 413, 415, 422, 503, 507),
    openapi_extra=form_of(VariationForm, "image"),
)
async def variations(request: Request) -> Response:
    """Draw variations of an image: the same things, drawn anew by image-to-image.

    Its strength is 0.6 unless given; 0.8 of models with an IP-Adapter, which reads the image.
    """
    server = server_of(request)
    form, files = await read_form(request, VariationForm, server.limits.body)
    form.compression  # noqa: B018 - it raises

    def make() -> Drawing:
        return server.make_drawing(variation_arguments(form, files, server), **form.options())

    return await drawn(request, await asyncio.to_thread(make), form, "image_edit")


async def drawn(request: Request, drawing: Drawing, body: PicturesBody, kind: Kind) -> Response:
    """Draw, and answer with the pictures or with a stream of events."""
    server = server_of(request)
    if isinstance(body, GenerationBody) and body.stream:
        job = server.submit(drawing, client_of(request))
        return stream_of(image_events(server, job, body, kind))
    _, pictures = await server.draw(drawing, client_of(request), request.is_disconnected)
    return SafeJSON(await asyncio.to_thread(images_answer, request, pictures, body))


@router.get("/models", response_model=ModelList, responses=errors())
async def list_models(request: Request) -> dict[str, Any]:
    """List the models that can be chosen."""
    server = server_of(request)
    return {"object": "list", "data": [model_row(server, name) for name in server.library.models]}


@router.get("/models/{model_id:path}", response_model=ModelAnswer, responses=errors(404))
async def get_model(request: Request, model_id: str) -> dict[str, Any]:
    """Return a model by its name."""
    server = server_of(request)
    return model_row(server, server.library.model(model_id))


@router.delete("/models/{model_id:path}", responses=errors(404), status_code=403)
async def delete_model(request: Request, model_id: str) -> Response:
    """Refuse: a client deletes no files."""
    name = server_of(request).library.model(model_id)
    raise ServerError(
        f"the model {name!r:.60} is a file of this server's owner; clients delete none",
        "model",
        403,
    )


def model_row(server: Server, name: str) -> dict[str, Any]:
    """Describe a model; it was created when its file was."""
    created, path = 0, server.library.models[name]
    with contextlib.suppress(OSError):
        created = int(Path(path or __file__).stat().st_mtime)
    return {"id": name, "object": "model", "created": created, "owned_by": "ldm"}
