"""The application: FastAPI with the routes of all interfaces above one ``Server``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ldm import __version__
from ldm.errors import LDMError
from ldm.server.guard import Guard
from ldm.server.routes import api, health, page
from ldm.server.settings import Settings
from ldm.server.shapes import describe_error, shape_of
from ldm.server.state import Server


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
    app.include_router(health.router)
    app.include_router(page.router)
    page.mount(app)
    app.add_exception_handler(LDMError, answer_error)
    app.add_exception_handler(MemoryError, answer_error)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_middleware(Guard, settings=settings, metrics=server.metrics)
    return app


def answer_error(request: Request, error: Exception) -> Response:
    """Answer an error in words, in the shape of the interface."""
    content, status = describe_error(error, request.url.path)
    return JSONResponse(content, status)


def answer_http(request: Request, error: Exception) -> Response:
    """Answer for an address that there is not, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    words = {404: "there is nothing at", 405: f"{request.method:.20} is no method of"}
    known = words.get(error.status_code)
    message = str(error.detail) if known is None else f"{known} {path!r:.100}"
    content = shape_of(path)(message, None, error.status_code)
    return JSONResponse(content, error.status_code, error.headers)


def answer_invalid(request: Request, error: Exception) -> Response:
    """Answer for a body that is none: what is wrong, and where, but not what was sent."""
    assert isinstance(error, RequestValidationError)
    found = [(".".join(map(str, each["loc"][1:])), each["msg"]) for each in error.errors()]
    message = "; ".join(f"{place}: {words}" if place else words for place, words in found[:4])
    content = shape_of(request.url.path)(message, found[0][0] or None, 422)
    return JSONResponse(content, 422)
