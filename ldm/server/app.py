"""The application: FastAPI with the routes of all interfaces above one ``Server``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from ldm import __version__
from ldm.server import error_answers
from ldm.server.guard import Guard
from ldm.server.routes import a1111, api, documentation, health, listings, openai, page, records
from ldm.server.settings import Settings
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
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.server = server
    app.include_router(api.router)
    app.include_router(a1111.router)
    app.include_router(health.router)
    app.include_router(records.router)
    app.include_router(page.router)
    app.include_router(listings.router)
    app.include_router(openai.router)
    app.include_router(documentation.router)
    page.mount(app)
    error_answers.install(app)
    app.add_middleware(Guard, settings=settings, metrics=server.metrics)
    return app
