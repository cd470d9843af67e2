"""Our own interface's lists of names, switching the model, and reading a picture's settings."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from ldm.control.preprocessors import PREPROCESSORS
from ldm.control.preprocessors.parameters import parameters
from ldm.samplers import SAMPLERS, SCHEDULES
from ldm.server.answers import (
    ModelsAnswer,
    PreprocessorsAnswer,
    ReadAnswer,
    SamplersAnswer,
    SchedulesAnswer,
    errors,
)
from ldm.server.reading import read_picture
from ldm.server.routes.common import plain_json, server_of
from ldm.server.schema import StrictBody
from ldm.server.state import Server

router = APIRouter(prefix="/api", tags=["ldm"])


class ModelBody(StrictBody):
    """The model to draw with."""

    name: str


class PictureBody(StrictBody):
    """A picture."""

    image: str = Field(
        description="base64 of its file, or a data URL", json_schema_extra={"format": "byte"}
    )


def names(server: Server) -> dict[str, Any]:
    """List what can be chosen by name."""
    library = server.library
    return {
        "current": server.current,
        "models": list(library.models),
        "loras": list(library.loras),
        "embeddings": list(library.embeddings),
        "controlnets": list(library.controlnets),
    }


@router.get("/models", response_model=ModelsAnswer, responses=errors())
async def get_models(request: Request) -> dict[str, Any]:
    """List what can be chosen by name."""
    return names(server_of(request))


@router.post("/models/current", response_model=ModelsAnswer, responses=errors(404, 503, 507))
async def set_model(request: Request, body: ModelBody) -> dict[str, Any]:
    """Load a model; it draws what names none."""
    server = server_of(request)
    await server.switch(body.name)
    return names(server)


@router.post("/refresh", response_model=ModelsAnswer, responses=errors())
async def refresh(request: Request) -> dict[str, Any]:
    """Look into the server's folders anew."""
    server = server_of(request)
    await asyncio.to_thread(server.library.refresh)
    return names(server)


@router.get("/samplers", response_model=SamplersAnswer, responses=errors())
async def get_samplers() -> dict[str, Any]:
    """List the samplers."""
    return {"samplers": [{"name": name, "label": row.label} for name, row in SAMPLERS.items()]}


@router.get("/schedules", response_model=SchedulesAnswer, responses=errors())
async def get_schedules() -> dict[str, Any]:
    """List the schedules of noise levels."""
    return {"schedules": [{"name": name, "label": row.label} for name, row in SCHEDULES.items()]}


@router.get("/preprocessors", response_model=PreprocessorsAnswer, responses=errors())
async def get_preprocessors() -> dict[str, Any]:
    """List the preprocessors of control pictures, and their parameters."""
    found = []
    for name, function in PREPROCESSORS.items():
        defaults = inspect.signature(function).parameters
        rows = [
            {
                "name": key,
                "type": "integer" if kind is int else "number",
                "interval": interval,
                "default": defaults[key].default,
            }
            for key, (kind, interval) in parameters(function).items()
        ]
        about = (inspect.getdoc(function) or "").partition("\n")[0]
        found.append({"name": name, "about": about, "parameters": rows})
    return {"preprocessors": found}


@router.post("/read", response_model=ReadAnswer, responses=errors(400, 413))
async def read(request: Request, body: PictureBody) -> dict[str, Any]:
    """Read the settings in a picture's file, of this or of another program."""
    server = server_of(request)
    most = server.limits.upload_pixels
    found = await asyncio.to_thread(read_picture, server.library, body.image, most)
    cleaned: dict[str, Any] = plain_json(found)
    return cleaned
