"""Answers in A1111's shapes, and its errors: {"error", "detail", "body", "errors"}."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from ldm.errors import LDMError
from ldm.server.errors import status_of
from ldm.server.routes.common import words_of

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
MOST_SHOWN = 200  # letters of a value that was wrong


class A1111Route(APIRoute):
    """A route whose errors have A1111's shape."""

    def get_route_handler(self) -> Handler:
        """See ``APIRoute``."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return error_answer(error, validation_words(error), 422)
            except HTTPException as error:
                return error_answer(error, str(error.detail), error.status_code)
            except (LDMError, MemoryError) as error:
                return error_answer(error, words_of(error), status_of(error))

        return answer


def make_router(tag: str = "A1111") -> APIRouter:
    """Make a router of such routes."""
    return APIRouter(route_class=A1111Route, tags=[tag])


def error_answer(error: BaseException, words: str, status: int) -> JSONResponse:
    """Answer an error in A1111's shape."""
    content = {"error": type(error).__name__, "detail": words, "body": "", "errors": words}
    return JSONResponse(plain(content), status)


def validation_words(error: RequestValidationError) -> str:
    """Say which fields of a body are wrong, what was found and what was expected."""
    found = []
    for each in error.errors()[:5]:
        name = ".".join(str(part) for part in each["loc"] if part != "body") or "the body"
        value = each.get("input")
        shown = f" (found {value!r:.60})" if not isinstance(value, dict) else ""
        found.append(f"{name}: {each['msg']}{shown}"[:MOST_SHOWN])
    return "; ".join(found)


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
