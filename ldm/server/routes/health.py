"""Whether the server works, for whoever watches over it, and its figures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ldm.server.guard import HEALTH
from ldm.server.routes.common import server_of

router = APIRouter(tags=["health"])


@router.get(HEALTH)
async def get_health(request: Request) -> JSONResponse:
    """Say whether the model is loaded and draws: 200, or 503 with the reason."""
    trouble = server_of(request).trouble()
    content: dict[str, Any] = {"status": "ok" if trouble is None else "unavailable"}
    if trouble is not None:
        content["reason"] = trouble
    return JSONResponse(content, 200 if trouble is None else 503)


@router.get("/metrics", response_class=Response)
async def get_metrics(request: Request) -> Response:
    """Return figures in Prometheus's text format."""
    content, kind = server_of(request).metrics.text()
    return Response(content, media_type=kind)
