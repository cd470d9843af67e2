"""``txt2img``: pictures of a text, in one pass or two."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request

from ldm.server.routes.a1111.answers import make_router
from ldm.server.routes.a1111.bodies import SAME, TextToImageBody
from ldm.server.routes.a1111.controlnet_units import add_scripts
from ldm.server.routes.a1111.options import Options, options_of
from ldm.server.routes.a1111.requests import Asked, read_body, read_sampler, size_of
from ldm.server.routes.a1111.results import answer
from ldm.server.routes.common import server_of
from ldm.server.state import Server

router = make_router()


@router.post("/txt2img")
async def text_to_image(request: Request, body: TextToImageBody) -> dict[str, Any]:
    """Draw pictures of a text."""
    asked = await asyncio.to_thread(read, server_of(request), options_of(request), body)
    return await answer(request, asked, [asked.drawing()])


def read(server: Server, options: Options, body: TextToImageBody) -> Asked:
    """Read a body. Raises LDMError for what cannot be drawn."""
    asked = read_body(server, options, body)
    if body.enable_hr:
        add_second_pass(asked, body)
    add_scripts(asked)
    return asked


def add_second_pass(asked: Asked, body: TextToImageBody) -> None:
    """Add the arguments of "hires fix". Raises ServerError for what is not done here."""
    for name, own in (("hr_prompt", body.prompt), ("hr_negative_prompt", body.negative_prompt)):
        if getattr(body, name) not in ("", own):
            asked.refuse(name, f"is another text than {name.removeprefix('hr_')}; leave it out")
    first = asked.arguments["sampler"], asked.arguments["schedule"]
    if body.hr_sampler_name not in SAME or body.hr_scheduler not in SAME:
        name = body.sampler_name or body.sampler_index
        sampler = name if body.hr_sampler_name in SAME else body.hr_sampler_name
        scheduler = body.scheduler if body.hr_scheduler in SAME else body.hr_scheduler
        if read_sampler(sampler, scheduler) != first:
            asked.refuse(
                "hr_sampler_name",
                f"is {sampler!r:.60} with the scheduler {scheduler!r:.60}; both passes have the "
                "same here",
            )
    asked.names["hires"] = True
    asked.arguments["hires_scale"] = second_scale(asked, body)
    asked.arguments["hires_strength"] = body.denoising_strength
    asked.arguments["hires_upscaler"] = body.hr_upscaler
    asked.arguments["hires_steps"] = body.hr_second_pass_steps or body.steps


def second_scale(asked: Asked, body: TextToImageBody) -> float:
    """Return by how much the second pass enlarges. Raises ServerError for another shape."""
    if body.firstphase_width or body.firstphase_height:  # of older clients
        target = size_of(asked)
        size = (body.firstphase_width or target[0], body.firstphase_height or target[1])
        asked.arguments["width"], asked.arguments["height"] = size
    elif body.hr_resize_x or body.hr_resize_y:
        target, size = (body.hr_resize_x, body.hr_resize_y), size_of(asked)
    else:
        return body.hr_scale
    scales = [large / small for large, small in zip(target, size, strict=True) if large]
    wanted = [round(large / 8) for large in target]
    made = [round(small * scales[0] / 8) for small in size]
    if any(large and large != found for large, found in zip(wanted, made, strict=True)):
        asked.refuse(
            "hr_resize_x",
            f"and hr_resize_y ask for {target[0]}x{target[1]} of {size[0]}x{size[1]}, which is "
            "another shape, and nothing is cut off here; give one of them, or hr_scale",
        )
    return scales[0]
