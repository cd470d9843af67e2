"""Errors as answers: each interface has its own shape, by the path that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ldm.config.checking import shown
from ldm.errors import LDMError, did_you_mean
from ldm.server.errors import ServerError, status_of
from ldm.server.openai_api.bodies import HINTS, EditForm
from ldm.server.schema import DrawingBody
from ldm.server.shapes import SafeJSON, interface_of, shape_of, words_of

log = logging.getLogger(__name__)
MOST_FAULTS = 5  # of one body that are named


@dataclass(frozen=True)
class Interface:
    """How one interface answers a body of another form than it reads.

    Attributes:
        status: of the answer. names: of its arguments, to offer the nearest. hints: what to do in
            place of an argument's values that are refused.
    """

    status: int = 422
    names: Callable[[], Sequence[str]] = lambda: ()
    hints: Mapping[str, str] = field(default_factory=dict)


def own_names() -> list[str]:
    """Return the arguments of our own interface."""
    return list(DrawingBody.model_fields)


def openai_names() -> list[str]:
    """Return the arguments of OpenAI's interface."""
    return list(EditForm.model_fields)


# By the beginnings of addresses.
INTERFACES = {"": Interface(names=own_names), "/v1": Interface(400, openai_names, HINTS)}


def answer(
    path: str,
    status: int,
    message: str,
    argument: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Answer an error in the shape of the interface that ``path`` belongs to."""
    headers = dict(headers or {})
    if status == 409:  # who cancelled a job does not want it drawn again
        headers["x-should-retry"] = "false"
    return SafeJSON(shape_of(path)(message, argument, status), status, headers)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer an error that a route raised: ours in words, of any other only that there was one."""
    status = status_of(error)
    if status == 500:
        log.error("%s failed", request.url.path, exc_info=error)
    argument = error.argument if isinstance(error, ServerError) else None
    return answer(request.url.path, status, words_of(error), argument)


async def answer_invalid(request: Request, error: Exception) -> Response:
    """Answer a body that is not of the form that the route reads."""
    assert isinstance(error, RequestValidationError)
    interface = INTERFACES.get(interface_of(request.url.path), Interface())
    message, argument = in_words(error.errors(), interface.names())
    if argument is not None and argument in interface.hints:
        message += f"; {interface.hints[argument]}"
    return answer(request.url.path, interface.status, message, argument)


async def answer_http(request: Request, error: Exception) -> Response:
    """Answer a path that there is not, a wrong method, or a body that cannot be parsed."""
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    path = ascii(request.url.path)
    if error.status_code == 404:
        message = f"there is nothing at {path:.200}; /docs lists what there is"
    elif error.status_code == 405:
        message = f"{request.method:.20} is no method of {path:.200}; /docs lists what there is"
    elif error.status_code == 400 and "parsing the body" in message:
        message = (
            "the body is no JSON that can be read: it is no UTF-8, nested too deep, or a number is "
            "too long"
        )
    return answer(request.url.path, error.status_code, message, None, dict(error.headers or {}))


def install(app: FastAPI) -> None:
    """Answer all errors of an application here."""
    for kind in (LDMError, MemoryError, Exception):
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http)


def in_words(faults: Sequence[Any], known: Sequence[str]) -> tuple[str, str | None]:
    """Return what is wrong with a body, and the name of the first argument that is.

    faults: of pydantic. known: names of arguments, to offer the nearest one.
    """
    found: dict[str, list[Any]] = {}
    for fault in faults:
        place = [part for part in fault["loc"] if part not in ("body", "query", "path")]
        name = str(place[0]) if place and isinstance(place[0], str) else ""
        found.setdefault(name, []).append(fault)
    parts = []
    for name, own in found.items():
        words = " or ".join(dict.fromkeys(one_in_words(fault, name, known) for fault in own))
        head = f"{ascii(name)[1:-1]:.60}: " if name else ""
        parts.append(f"{head}{words}{value_in_words(own[0])}")
    more = f"; and {len(parts) - MOST_FAULTS} more" if len(parts) > MOST_FAULTS else ""
    argument = next(iter(found), "") or None
    return "; ".join(parts[:MOST_FAULTS]) + more, argument and ascii(argument)[1:-1][:60]


def one_in_words(fault: Any, name: str, known: Sequence[str]) -> str:
    """Return one of pydantic's errors in words."""
    kind = fault["type"]
    if kind == "extra_forbidden":
        hint = did_you_mean(str(fault["loc"][-1]), known, count=3)
        return f"there is no such argument; {hint or '/docs lists all'}"
    if kind == "json_invalid":
        return f"the body is no JSON ({fault['ctx']['error']} at {fault['loc'][-1]})"
    if kind == "missing":
        return "it is missing" if name else "the body is missing; send JSON"
    if kind in ("model_attributes_type", "model_type", "dict_type") and not name:
        return "the body is no JSON object; send one, with the Content-Type application/json"
    if kind == "string_pattern_mismatch":
        return "expected another form"
    return str(fault["msg"]).replace("Input should be ", "expected ").replace("a valid ", "a ")


def value_in_words(fault: Any) -> str:
    """Return the value that is wrong in words, if it is a number or a text."""
    value = fault.get("input")
    plain = value is None or isinstance(value, bool | int | float | str)
    if not plain or huge(value) or fault["type"] in ("extra_forbidden", "missing", "json_invalid"):
        return ""
    return f", not {shown(value)}"


def huge(value: Any) -> bool:
    """Whether a whole number has too many digits to be written."""
    return isinstance(value, int) and abs(value) > 10**40
