"""Tests do not change each other's surroundings."""

from __future__ import annotations

import os

import pytest

from tests.helpers.surroundings import own_environment


def test_the_environment_of_a_test_ends_with_it() -> None:
    before = dict(os.environ)
    with pytest.raises(KeyError), own_environment():
        os.environ["CXX"] = "gcc"
        os.environ["HF_HOME"] = "elsewhere"
        del os.environ["XDG_CACHE_HOME"]
        raise KeyError
    assert dict(os.environ) == before


def test_the_fixture_is_there(request: pytest.FixtureRequest) -> None:
    assert "environment" in request.fixturenames
