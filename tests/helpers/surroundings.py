"""The surroundings of a test, which end with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_environment() -> Iterator[None]:
    """Undo what is set in the environment meanwhile, by a test or by a library that it imports.

    peft's BOFT sets CXX=gcc, which links no C++ library: whatever was compiled later failed.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        now = os.environ.keys() - {"PYTEST_CURRENT_TEST"}  # pytest's own
        for name in now - before.keys():
            del os.environ[name]
        os.environ.update({k: text for k, text in before.items() if k != "PYTEST_CURRENT_TEST"})
