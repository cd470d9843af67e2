"""``png-info``: the settings in a picture."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from ldm.images.metadata import parse_parameters
from ldm.images.text_fields import COMMENT, PARAMETERS, parameters_of, text_fields
from ldm.server.routes.a1111.answers import make_router, plain
from ldm.server.routes.common import server_of
from ldm.server.uploads import read_upload

router = make_router()


class PngInfoBody(BaseModel):
    """A picture."""

    image: str


@router.post("/png-info")
async def png_info(request: Request, body: PngInfoBody) -> dict[str, Any]:
    """Return the settings in a picture: as text, and read; and its other texts."""
    most = server_of(request).limits.upload_pixels
    found: dict[str, Any] = plain(await asyncio.to_thread(read, body.image.strip(), most))
    return found


def read(image: str, most: int) -> dict[str, Any]:
    """Read the texts of a picture. Raises ServerError for what is no picture."""
    texts = text_fields(read_upload(image, "image", most))
    text = parameters_of(texts) or ""
    items = {name: value for name, value in texts.items() if name not in (PARAMETERS, COMMENT)}
    return {"info": text, "items": items, "parameters": read_settings(text)}


def read_settings(text: str) -> dict[str, str]:
    """Read settings under A1111's names; a size is also in two parts."""
    if not text:
        return {}
    settings = dict(parse_parameters(text))
    for name in [name for name in settings if name.lower() in ("size", "hires resize")]:
        width, cross, height = settings[name].partition("x")
        if cross:
            settings |= {f"{name}-1": width.strip(), f"{name}-2": height.strip()}
    return settings
