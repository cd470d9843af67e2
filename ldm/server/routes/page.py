"""The page: static files of the package."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

FOLDER = Path(__file__).parents[1] / "page"
router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> FileResponse:
    """Return the page."""
    return FileResponse(FOLDER / "index.html")


def mount(app: FastAPI) -> None:
    """Serve the page's scripts and styles."""
    app.mount("/page", StaticFiles(directory=FOLDER), name="page")
