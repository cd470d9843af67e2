"""A server with the built-in model, for all tests of this folder."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from ldm.server.app import create_app
from ldm.server.settings import Settings

ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    """A client of a server; its core is `client.app.state.server`."""
    with TestClient(create_app(Settings()), base_url=ADDRESS, client=("127.0.0.1", 5000)) as client:
        yield client


@contextlib.contextmanager
def served(app) -> Iterator[str]:
    """Serve an application that has started on a free port; its address."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        threading.Event().wait(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def address(client) -> Iterator[str]:
    """Where the server of `client` is reached by other clients."""
    with served(client.app) as address:
        yield address


@pytest.fixture
def limited():
    """Make servers with other settings, such as `limited(waiting=1)`."""

    def make(settings: Settings | None = None, **limits: float) -> TestClient:
        settings = settings or Settings()
        settings = replace(settings, limits=replace(settings.limits, **limits))
        return TestClient(create_app(settings), base_url=ADDRESS, client=("127.0.0.1", 5000))

    return make


@pytest.fixture(scope="module")
def place():
    """A browser and a server; of one module alone, since Playwright's loop runs in its thread."""
    from tests.server.browsing import Visits, browsing, serving

    with browsing() as browser, serving(Settings()) as (url, server):
        yield Visits(browser, url, server)


@pytest.fixture
def visits(place):
    """Pages, after which there must be no error and no request to another place."""
    yield place
    place.close()
