"""A1111's HTTP interface, ``/sdapi/v1``, and that of its ControlNet extension, ``/controlnet``.

Fields, defaults and meanings are those of AUTOMATIC1111's stable-diffusion-webui 1.10
(``modules/api``, ``modules/processing.py``). What would change the picture and is not done here is
refused in words; what A1111 would ignore too is named in ``info``, under "ignored".
"""

from __future__ import annotations

from fastapi import APIRouter

from ldm.server.routes.a1111 import (
    about,
    controlnet,
    extras,
    img2img,
    listings,
    options,
    png_info,
    progress,
    txt2img,
)

router = APIRouter()
for part in (txt2img, img2img, extras, png_info, progress, options, listings, about):
    router.include_router(part.router, prefix="/sdapi/v1")
router.include_router(controlnet.router, prefix="/controlnet")
