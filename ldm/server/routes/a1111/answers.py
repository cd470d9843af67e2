"""What A1111's interface answers: routers, and JSON that can be sent."""

from __future__ import annotations

import base64
import math
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from ldm.server.answers import ERROR_WORDS, Answer


class A1111Error(Answer):
    """An error as A1111 answers it."""

    error: str = Field(description="its kind")
    detail: str = Field(description="what is wrong, in words")
    body: str
    errors: str = Field(description="the same words")


def make_router(tag: str = "A1111") -> APIRouter:
    """Make a router; ``ldm.server.shapes`` gives its errors A1111's shape."""
    answers: dict[int | str, dict[str, Any]] = {
        status: {"model": A1111Error, "description": words} for status, words in ERROR_WORDS.items()
    }
    return APIRouter(tags=[tag], responses=answers)


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value of JSON that can be sent: a client may send numbers and letters that cannot.

    These are NaN, the infinities and halves of surrogate pairs; what is nested too deep is left
    out.
    """
    if depth > 20:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {plain(str(name)): plain(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, depth + 1) for each in value]
    return value


def to_base64(data: bytes) -> str:
    """Return a file as A1111 sends it: base64 without a prefix."""
    return base64.b64encode(data).decode()
