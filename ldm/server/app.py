"""The application: FastAPI with the routes of all interfaces above one ``Server``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from ldm import __version__
from ldm.errors import LDMError
from ldm.server.errors import ServerError, status_of
from ldm.server.routes import api, page, records
from ldm.server.settings import Settings
from ldm.server.state import Server

log = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Make the application; the model is loaded when it starts. ``app.state.server`` is its core.

    Raises LDMError at its start for a model that does not load.
    """
    server = Server(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.start()
        try:
            yield
        finally:
            server.stop()

    app = FastAPI(
        title="ldm",
        version=__version__,
        summary="Pictures of a text, by a latent diffusion model",
        lifespan=lifespan,
    )
    app.state.server = server
    app.include_router(api.router)
    app.include_router(records.router)
    app.include_router(page.router)
    page.mount(app)
    app.add_exception_handler(LDMError, answer_error)
    app.add_exception_handler(MemoryError, answer_error)
    return app


def answer_error(request: Request, error: Exception) -> Response:
    """Answer an error in words, in our own shape."""
    status = status_of(error)
    argument = error.argument if isinstance(error, ServerError) else None
    return JSONResponse({"error": {"message": str(error), "argument": argument}}, status)
