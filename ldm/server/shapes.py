"""Errors in the shape of the interface that was asked: by the beginning of the address."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi.responses import JSONResponse

from ldm.errors import LDMError
from ldm.server.errors import ServerError, status_of

# From a message, the argument it is about (None: none) and the status to the content of an answer.
Shape = Callable[[str, str | None, int], dict[str, Any]]
HIDDEN = "the server failed at this; its log says how"
UTF8 = "utf-8"
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 404: "not_found", 409: "cancelled", 429: "rate_limit_exceeded"}


class SafeJSON(JSONResponse):
    """JSON in ASCII: what it quotes of a request may be no text that UTF-8 can write."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def own(message: str, argument: str | None, status: int) -> dict[str, Any]:
    """Return an error as our own interface has it."""
    return {"error": {"message": message, "argument": argument}}


def openai(message: str, argument: str | None, status: int) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = "model_not_found" if (status, argument) == (404, "model") else CODES.get(status)
    return {"error": {"message": message, "type": kind, "param": argument, "code": code}}


def a1111(message: str, argument: str | None, status: int) -> dict[str, Any]:
    """Return an error as A1111's web UI answers it."""
    kind = "HTTPException" if status < 500 else "RuntimeError"
    return {"error": kind, "detail": message, "body": "", "errors": message}


SHAPES: dict[str, Shape] = {"/v1": openai, "/sdapi": a1111, "/controlnet": a1111}


def interface_of(path: str) -> str:
    """Return the beginning of an address that says whose interface it is; "" is our own."""
    return next((one for one in SHAPES if path == one or path.startswith(f"{one}/")), "")


def shape_of(path: str) -> Shape:
    """Return the shape of errors of an address."""
    return SHAPES.get(interface_of(path), own)


def words_of(error: BaseException) -> str:
    """Return an error in words for a client; of a mistake in the program, no details."""
    words = str(error) if isinstance(error, LDMError | MemoryError) else HIDDEN
    # Half of a surrogate pair, which may be quoted from a request, cannot be sent.
    return (words or HIDDEN).encode(UTF8, "backslashreplace").decode(UTF8)


def describe_error(error: BaseException, path: str) -> tuple[dict[str, Any], int]:
    """Return the content and the status of the answer to an error."""
    status = status_of(error)
    argument = error.argument if isinstance(error, ServerError) else None
    return shape_of(path)(words_of(error), argument, status), status
