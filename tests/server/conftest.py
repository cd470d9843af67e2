"""A server with the built-in model, for all tests of this folder."""

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


@pytest.fixture
def limited():
    """Make servers with other settings, such as `limited(waiting=1)`."""

    def make(settings: Settings | None = None, **limits: float) -> TestClient:
        settings = settings or Settings()
        settings = replace(settings, limits=replace(settings.limits, **limits))
        return TestClient(create_app(settings), base_url=ADDRESS, client=("127.0.0.1", 5000))

    return make
