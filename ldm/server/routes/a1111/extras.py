"""``extra-single-image`` and ``extra-batch-images``: pictures enlarged."""

from __future__ import annotations

import asyncio
import html
from typing import Any

from fastapi import Request
from PIL import Image
from pydantic import BaseModel, Field, FiniteFloat

from ldm.images.files import load_layer
from ldm.server.drawing import check_pixels
from ldm.server.errors import ServerError
from ldm.server.routes.a1111.answers import make_router, to_base64
from ldm.server.routes.a1111.options import options_of
from ldm.server.routes.common import server_of
from ldm.server.state import Server
from ldm.server.store import encode
from ldm.server.uploads import read_upload
from ldm.upscaling import Upscaler, load_upscaler

router = make_router()
NONE = ("none", "")
MOST_IMAGES = 32  # of one request
working = asyncio.Lock()  # one picture at a time: a model takes memory


class ExtrasBody(BaseModel):
    """How to enlarge, with A1111's names and defaults."""

    resize_mode: int = Field(default=0, ge=0, le=1)
    show_extras_results: bool = True
    gfpgan_visibility: FiniteFloat = Field(default=0, ge=0, le=1)
    codeformer_visibility: FiniteFloat = Field(default=0, ge=0, le=1)
    codeformer_weight: FiniteFloat = Field(default=0, ge=0, le=1)
    upscaling_resize: FiniteFloat = Field(default=2, gt=0)
    upscaling_resize_w: int = Field(default=512, ge=1)
    upscaling_resize_h: int = Field(default=512, ge=1)
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: FiniteFloat = Field(default=0, ge=0, le=1)
    upscale_first: bool = False


class SingleBody(ExtrasBody):
    """One picture."""

    image: str = ""


class FileBody(BaseModel):
    """A picture, and a name that is not used."""

    data: str
    name: str = ""


class BatchBody(ExtrasBody):
    """Several pictures."""

    imageList: list[FileBody] = Field(default_factory=list)  # A1111's name


@router.post("/extra-single-image")
async def extra_single_image(request: Request, body: SingleBody) -> dict[str, Any]:
    """Enlarge a picture."""
    images, words = await enlarge_all(request, body, [body.image])
    return {"html_info": words, "image": images[0] if images else None}


@router.post("/extra-batch-images")
async def extra_batch_images(request: Request, body: BatchBody) -> dict[str, Any]:
    """Enlarge pictures."""
    if not 0 < len(body.imageList) <= MOST_IMAGES:
        raise ServerError(
            f"imageList has {len(body.imageList)} pictures; send 1 to {MOST_IMAGES}",
            "imageList",
            422,
        )
    images, words = await enlarge_all(request, body, [one.data for one in body.imageList])
    return {"html_info": words, "images": images}


async def enlarge_all(request: Request, body: ExtrasBody, sent: list[str]) -> tuple[list[str], str]:
    """Return enlarged pictures as base64, and what was done."""
    for name in ("gfpgan_visibility", "codeformer_visibility"):
        if getattr(body, name):
            raise ServerError(
                f"{name} is {getattr(body, name):g}; no faces are restored here", name
            )
    server, options = server_of(request), options_of(request)
    found = []
    async with working:
        upscalers = await asyncio.to_thread(load_all, server, body)
        for each in sent:
            picture = await asyncio.to_thread(enlarge, server, body, each, upscalers)
            found.append(to_base64(encode(picture, options.file_format)))
    shown = [html.escape(one.name) for one in upscalers] or ["None"]
    words = (
        f"<p>Postprocess upscale by: {body.upscaling_resize:g}, upscaler: {', '.join(shown)}</p>"
    )
    return (found if body.show_extras_results else []), words


def load_all(server: Server, body: ExtrasBody) -> list[Upscaler]:
    """Load one upscaler or two; [] leaves pictures as they are. Raises LDMError."""
    names = [body.upscaler_1]
    if body.extras_upscaler_2_visibility:
        names.append(body.upscaler_2)
    if body.upscaler_1.lower() in NONE:
        return []
    return [load_listed(server, name) for name in names if name.lower() not in NONE]


def load_listed(server: Server, name: str) -> Upscaler:
    """Load an upscaler that is listed: clients' paths are not read. Raises LDMError."""
    return load_upscaler(server.library.upscaler(name))


def enlarge(server: Server, body: ExtrasBody, sent: str, upscalers: list[Upscaler]) -> Image.Image:
    """Enlarge one picture. Raises LDMError for what is no picture, or would be too large."""
    image = load_layer(read_upload(sent, "image", server.limits.upload_pixels))
    width, height = target_size(body, image)
    check_pixels(width, height, server.limits)
    if not upscalers:
        return image
    made = [upscaler(image, width, height) for upscaler in upscalers]
    result = made[0]
    if len(made) > 1:
        result = Image.blend(made[0], made[1], body.extras_upscaler_2_visibility)
    if body.resize_mode == 1 and body.upscaling_crop:
        want = (body.upscaling_resize_w, body.upscaling_resize_h)
        left, top = (width - want[0]) // 2, (height - want[1]) // 2
        result = result.crop((left, top, left + want[0], top + want[1]))
    return result


def target_size(body: ExtrasBody, image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) of an enlarged picture before it is cropped."""
    scale = body.upscaling_resize
    if body.resize_mode == 1:
        scale = max(body.upscaling_resize_w / image.width, body.upscaling_resize_h / image.height)
        if body.upscaling_crop:  # it covers the size, in spite of rounding
            return (
                max(round(image.width * scale), body.upscaling_resize_w),
                max(round(image.height * scale), body.upscaling_resize_h),
            )
    return max(int(image.width * scale), 1), max(int(image.height * scale), 1)
