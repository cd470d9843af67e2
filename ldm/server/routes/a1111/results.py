"""Draw what a client asks for, and answer in A1111's shape."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from PIL import Image

from ldm.images.files import stretch
from ldm.samplers import SAMPLERS
from ldm.server.drawing import Drawing
from ldm.server.jobs import Job
from ldm.server.routes.a1111.answers import plain, to_base64
from ldm.server.routes.a1111.requests import Asked
from ldm.server.routes.common import client_of
from ldm.server.store import Stored, encode

INTERFACE = "a1111"  # of a job's details


async def answer(request: Request, asked: Asked, drawings: list[Drawing]) -> dict[str, Any]:
    """Draw, and answer as txt2img and img2img do; whoever leaves has the pictures cancelled."""
    found = await draw_all(request, asked, drawings)
    stored = [one for _, each in found for one in each]
    images: list[str] = []
    if asked.body.send_images:
        pictures = [picture for job, _ in found for picture in job.status.pictures]
        images = await asyncio.to_thread(files, asked, pictures, stored)
    if not asked.body.override_settings_restore_afterwards:
        request.app.state.a1111_options = asked.options
        asked.server.current = asked.model
    given = asked.body.model_dump()
    return {
        "images": images,
        "parameters": plain(given),
        "info": json.dumps(plain(info(asked, drawings, stored))),
    }


async def draw_all(
    request: Request, asked: Asked, drawings: list[Drawing]
) -> list[tuple[Job, list[Stored]]]:
    """Draw several drawings; if one fails, the others are cancelled, and its error is raised."""
    details = {"interface": INTERFACE, "batch_size": asked.body.batch_size}
    disconnected = one_at_a_time(request.is_disconnected)
    draw = asked.server.draw
    client = client_of(request)
    tasks = [
        asyncio.ensure_future(draw(drawing, client, disconnected, dict(details)))
        for drawing in drawings
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def one_at_a_time(function: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    """Return a function that several tasks may call at once."""
    lock = asyncio.Lock()

    async def call() -> bool:
        async with lock:
            return await function()

    return call


def files(asked: Asked, pictures: list[Image.Image], stored: list[Stored]) -> list[str]:
    """Return pictures as base64 in the format of the options, and then what ControlNets read."""
    kind = asked.options.file_format
    if kind == "png":
        found = [one.data for one in stored]
    else:
        quality = asked.options.jpeg_quality
        found = [encode(picture, kind, quality=quality) for picture in pictures]
    if stored and not asked.options.control_net_no_detectmap:
        size = (asked.body.width or stored[0].width, asked.body.height or stored[0].height)
        found += [encode(seen(source, size), kind) for source in asked.maps]
    return [to_base64(data) for data in found]


def seen(source: Any, size: tuple[int, int]) -> Image.Image:
    """Return what a ControlNet read of a picture, at (width, height)."""
    if isinstance(source, Image.Image):
        return stretch(source.convert("RGB"), size[1], size[0])
    picture: Image.Image = source.picture(size[::-1])
    return picture


def info(asked: Asked, drawings: list[Drawing], stored: list[Stored]) -> dict[str, Any]:
    """Return A1111's description of the pictures."""
    body, first = asked.body, drawings[0].request
    prompt, negative = asked.prompts
    count = sum(drawing.request.count for drawing in drawings)
    seed, strength = asked.arguments["seed"], body.subseed_strength
    subseed = asked.arguments.get("variation_seed", max(body.subseed, 0))
    size = (stored[0].width, stored[0].height) if stored else (first.width, first.height)
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": seed,
        "all_seeds": [seed + (0 if strength else i) for i in range(count)],
        "subseed": subseed,
        "all_subseeds": [subseed + i for i in range(count)],
        "subseed_strength": strength,
        "width": body.width or size[0],
        "height": body.height or size[1],
        "sampler_name": SAMPLERS[asked.arguments["sampler"]].label,
        "cfg_scale": body.cfg_scale,
        "steps": body.steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": asked.model,
        "sd_model_hash": "",
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": body.seed_resize_from_w,
        "seed_resize_from_h": body.seed_resize_from_h,
        "denoising_strength": getattr(body, "denoising_strength", None),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [one.parameters for one in stored],
        "styles": body.styles,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": asked.options.CLIP_stop_at_last_layers,
        "is_using_inpainting_conditioning": False,
        "version": next((one.settings.get("ldm") for one in stored), None),
        "ignored": asked.notes,
    }
