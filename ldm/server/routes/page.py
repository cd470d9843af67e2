"""The page: static files of the package, and what its form offers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from ldm.server.choices import choices
from ldm.server.routes.common import server_of

FOLDER = Path(__file__).parents[1] / "page"
# Windows' registry may have others for these, with which browsers refuse modules.
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    [
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Cache-Control": "no-cache",  # a new version of ldm is seen at once: the ETag is compared
    "Content-Security-Policy": POLICY,
}
router = APIRouter(include_in_schema=False)


class PageFiles(StaticFiles):
    """The files below ``FOLDER``, with ETags and the headers above."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Return a file, or 304 for one that the browser has."""
        answer = super().file_response(full_path, stat_result, scope, status_code)
        kind = TYPES.get(Path(full_path).suffix)
        if kind is not None and "content-type" in answer.headers:
            answer.headers["content-type"] = f"{kind}; charset=utf-8"
        answer.headers.update(HEADERS)
        return answer


@router.get("/")
async def index() -> FileResponse:
    """Return the page."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


@router.get("/page/choices.json")
async def get_choices(request: Request) -> dict[str, Any]:
    """Return what can be chosen in the form, and what the model in memory advises."""
    return choices(server_of(request))


def mount(app: FastAPI) -> None:
    """Serve the page's scripts and styles."""
    app.mount("/page", PageFiles(directory=FOLDER), name="page")
