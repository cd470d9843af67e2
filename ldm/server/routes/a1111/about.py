"""What A1111 says of itself: memory, flags, scripts; and what is not here, in words."""

from __future__ import annotations

import os
from typing import Any

from fastapi import Request

from ldm.memory.system import available_memory
from ldm.server.errors import ServerError
from ldm.server.routes.a1111.answers import make_router
from ldm.server.routes.a1111.controlnet_units import SCRIPT, Unit
from ldm.server.routes.common import server_of

router = make_router()
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@router.get("/memory")
async def get_memory(request: Request) -> dict[str, Any]:
    """Return how much memory there is, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = available_memory()
    ram = {"free": free, "used": None if free is None else max(total - free, 0), "total": total}
    return {"ram": ram, "cuda": cuda_memory(server_of(request).model.pipe)}


def cuda_memory(pipe: Any) -> dict[str, Any]:
    """Return the memory of the model's device."""
    if pipe is None or pipe.device.type != "cuda":
        return {"error": "unavailable"}
    import torch

    free, total = torch.cuda.mem_get_info(pipe.device)
    found: dict[str, Any] = {"system": {"free": free, "used": total - free, "total": total}}
    kinds = {"active": "active_bytes", "allocated": "allocated_bytes", "reserved": "reserved_bytes"}
    counts = torch.cuda.memory_stats(pipe.device)
    for name, key in kinds.items():
        found[name] = {
            "current": counts.get(f"{key}.all.current", 0),
            "peak": counts.get(f"{key}.all.peak", 0),
        }
    found["events"] = {"retries": counts.get("num_alloc_retries", 0), "oom": counts.get("num_ooms")}
    return found


@router.get("/cmd-flags")
async def get_flags(request: Request) -> dict[str, Any]:
    """Return the flags with which A1111 would be as this server is; no paths."""
    settings = server_of(request).settings
    return {
        "api": True,
        "nowebui": False,
        "listen": settings.host not in LOOPBACK,
        "port": settings.port,
        "ckpt": settings.model and os.path.basename(settings.model),  # noqa: PTH119  # or a hub id
        "device": settings.device,
        "dtype": settings.dtype,
    }


@router.get("/scripts")
async def get_scripts() -> dict[str, list[str]]:
    """List the scripts."""
    return {"txt2img": [SCRIPT], "img2img": [SCRIPT]}


@router.get("/script-info")
async def get_script_info() -> list[dict[str, Any]]:
    """Describe the scripts: an argument of ControlNet is a unit."""
    fields = {name: field.get_default(call_default_factory=True) for name, field in units().items()}
    args = [{"label": "unit", "value": fields, "minimum": None, "maximum": None, "step": None}]
    return [
        {"name": SCRIPT, "is_alwayson": True, "is_img2img": is_img2img, "args": args}
        for is_img2img in (False, True)
    ]


def units() -> dict[str, Any]:
    """Return the fields of a unit."""
    return dict(Unit.model_fields)


@router.get("/extensions")
async def get_extensions() -> list[dict[str, Any]]:
    """List the extensions: none, as ControlNet is a part of this program."""
    return []


@router.post("/interrogate")
async def interrogate() -> None:
    """Refuse: no model here describes pictures."""
    raise ServerError(
        "interrogate needs a model that describes pictures, and none is here", None, 422
    )
