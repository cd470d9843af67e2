"""Routes of A1111's ControlNet extension: what there is, and pictures preprocessed."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field, FiniteFloat

from ldm.control.preprocessed import ControlSource
from ldm.images.files import load_image, load_layer
from ldm.images.generation_info import OWN_CONTROLNET
from ldm.server.errors import ServerError
from ldm.server.routes.a1111 import controlnet_modules as modules
from ldm.server.routes.a1111.answers import make_router, to_base64
from ldm.server.routes.a1111.controlnet_units import at_resolution, has_own
from ldm.server.routes.common import server_of
from ldm.server.store import encode
from ldm.server.uploads import read_upload

router = make_router("A1111's ControlNet extension")
VERSION = 3  # of the extension's interface
UNITS = 8
MOST_DETECTED = 16  # pictures of one request


class DetectBody(BaseModel):
    """Pictures to preprocess."""

    controlnet_module: str = "none"
    controlnet_input_images: list[str] = Field(default_factory=list)
    controlnet_images: list[str] = Field(default_factory=list)  # of older clients
    controlnet_processor_res: int = -1
    controlnet_threshold_a: FiniteFloat = -1
    controlnet_threshold_b: FiniteFloat = -1
    controlnet_masks: list[str] = Field(default_factory=list)


@router.get("/version")
async def get_version() -> dict[str, int]:
    """Return the version of the extension's interface."""
    return {"version": VERSION}


@router.get("/model_list")
async def get_models(request: Request, update: bool = True) -> dict[str, list[str]]:
    """List the ControlNets; the model's own is the first if it has one."""
    server = server_of(request)
    if update:
        await asyncio.to_thread(server.library.refresh)
    own = [OWN_CONTROLNET] if has_own(server, server.current) else []
    return {"model_list": [*own, *server.library.controlnets]}


@router.get("/module_list")
async def get_modules(alias_names: bool = False) -> dict[str, Any]:
    """List the modules, and what their thresholds are."""
    details = {
        name: {
            "model_free": name in modules.MODES,
            "sliders": [
                {"name": parameter, "value": default, "interval": interval}
                for parameter, interval, default in modules.SLIDERS.get(name.split("_")[0], ())
            ],
        }
        for name in modules.names()
    }
    return {"module_list": modules.names(), "module_detail": details}


@router.get("/settings")
async def get_settings() -> dict[str, int]:
    """Return how many units a request may have."""
    return {"control_net_unit_count": UNITS}


@router.post("/detect")
async def detect(request: Request, body: DetectBody) -> dict[str, Any]:
    """Preprocess pictures."""
    most = server_of(request).limits.upload_pixels
    return await asyncio.to_thread(preprocess, body, most)


def preprocess(body: DetectBody, most: int) -> dict[str, Any]:
    """Return the pictures that a module makes. Raises LDMError for what it cannot read."""
    sent = body.controlnet_input_images or body.controlnet_images
    if not sent or len(sent) > MOST_DETECTED:
        raise ServerError(
            f"controlnet_input_images has {len(sent)} pictures; send 1 to {MOST_DETECTED}",
            "controlnet_input_images",
            422,
        )
    notes: list[str] = []
    thresholds = (body.controlnet_threshold_a, body.controlnet_threshold_b)
    name = body.controlnet_module
    if name.lower() in modules.MODES:
        raise ServerError(f"the module {name!r:.60} makes no picture", "controlnet_module", 422)
    module = modules.find_module(name, thresholds, "controlnet_module", notes)
    images = []
    for i, each in enumerate(sent):
        label = f"controlnet_input_images {i + 1}"
        picture = load_layer(read_upload(each, label, most))
        if i < len(body.controlnet_masks):
            mask = read_upload(body.controlnet_masks[i], f"controlnet_masks {i + 1}", most)
            picture = modules.with_mask(picture, mask, name, label)
        made = load_image(picture)
        if module is not None:
            scaled = at_resolution(picture, body.controlnet_processor_res, label)
            made = ControlSource(module[0], scaled, module[1]).loaded().picture()
        images.append(to_base64(encode(made)))
    return {"images": images, "info": "; ".join(["Success", *notes])}
