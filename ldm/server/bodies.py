"""Bodies of requests: bounded in length, time and depth before anything reads them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import Message, Receive

from ldm.server.errors import BusyError, ServerError
from ldm.server.settings import Limits

FORMS = ("multipart/", "application/x-www-form-urlencoded")
SLOWEST = 64 * 1024  # bytes a second, after the time that any body may take
LINGER = 2.0  # seconds in which a body that is refused is read on: its sender reads only then
LONGEST_NUMBER = 64  # characters
# A text (also one that does not end, or looking for its end would take quadratic time), a bracket,
# or what is between these.
TOKENS = re.compile(
    rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]|[^"\[\]{}]+',
    re.DOTALL,
)
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
BAD_NUMBER = re.compile(rb"NaN|Infinity|[-+.0-9eE]{%d,}|[eE]\+?[0-9]{3,}" % (LONGEST_NUMBER + 1))


class ClientLeft(Exception):
    """The client disconnected before its request was whole."""


class Bodies:
    """The bodies of all requests that are being answered."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0  # bytes

    async def read(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """Read a body; ``release`` has to follow.

        Raises ServerError for one that is too long or too slow, BusyError if too many are held,
        ClientLeft.
        """
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise ServerError(f"Content-Length is {length!r:.40}; it must be a number")
        if int(length[:20]) > self.limits.body:
            await discard(receive)
            raise self._too_long()
        began, received = time.monotonic(), 0
        parts: list[bytes] = []
        try:
            while True:
                allowed = self.limits.body_seconds + received / SLOWEST
                message = await self._part(receive, began + allowed - time.monotonic())
                part = message.get("body", b"")
                received += len(part)
                self.held += len(part)
                parts.append(part)
                if received > self.limits.body:
                    parts.clear()
                    await discard(receive)
                    raise self._too_long()
                if self.held > self.limits.bodies:
                    raise BusyError("the server reads too much at once; try again later")
                if not message.get("more_body", False):
                    return b"".join(parts)
        except BaseException:
            self.release(received)
            raise

    async def _part(self, receive: Receive, seconds: float) -> Message:
        try:
            message = await asyncio.wait_for(receive(), max(seconds, 0.01))
        except (TimeoutError, asyncio.TimeoutError):
            raise ServerError(
                "the body comes too slowly; the server has stopped reading it", None, 408
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientLeft
        return message

    def _too_long(self) -> ServerError:
        words = f"the body is too long; this server reads up to {self.limits.body:,} bytes"
        return ServerError(words, None, 413)

    def release(self, count: int) -> None:
        """Say that a body of so many bytes is held no more."""
        self.held -= count


async def discard(receive: Receive) -> None:
    """Read for a moment what is not wanted: a client that still writes sees no answer."""

    async def read() -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return

    try:
        await asyncio.wait_for(read(), LINGER)
    except (TimeoutError, asyncio.TimeoutError):
        return


def check_content(headers: Mapping[str, str], body: bytes, limits: Limits) -> None:
    """Raise ServerError for JSON that is refused, see ``check_json``; forms are not looked at."""
    if body and not headers.get("content-type", "").lower().startswith(FORMS):
        check_json(body, limits)


def check_json(body: bytes, limits: Limits) -> None:
    """Raise ServerError for JSON that is deeper or has more values than any request.

    So it does for numbers that are none or without bounds, and for texts that cannot be written:
    Python reads all of these. Whether the JSON is right is for others to see. 64 MB take a tenth
    of a second.
    """
    if b"\0" in body:
        raise ServerError("the JSON has a zero byte; send it as UTF-8")
    depth = values = 0
    for number, match in enumerate(TOKENS.finditer(body)):
        start, end = match.span()
        first = body[start : start + 1]
        if first == b'"':
            if SURROGATE.search(body, start, end):
                check_text(match[0])
        elif first in b"[{":
            depth, values = depth + 1, values + 1
        elif first in b"]}":
            depth -= 1
        else:
            values += check_between(match[0], limits)
        if values > limits.json_values or number > 8 * limits.json_values:
            raise ServerError(
                f"the JSON has too many values; this server reads up to {limits.json_values:,}",
                None,
                413,
            )
        if depth > limits.json_depth:
            raise ServerError(
                f"the JSON is more than {limits.json_depth} levels deep, which no request is"
            )


def check_between(text: bytes, limits: Limits) -> int:
    """Return how many commas are between texts and brackets. Raises ServerError for a number."""
    values = text.count(b",")
    text = text.translate(None, b" \t\r\n")
    found = BAD_NUMBER.search(text[: LONGEST_NUMBER * limits.json_values])
    if found is not None:
        number = found[0].decode("ascii")
        raise ServerError(f"the JSON has the number …{number:.12}…; send one that is of use")
    return values


def check_text(token: bytes) -> None:
    """Raise ServerError for a text with half of a surrogate pair."""
    try:
        text: Any = json.loads(token)
        text.encode()
    except UnicodeEncodeError:
        raise ServerError("a text has half of a character (a lone surrogate)") from None
    except ValueError:
        return  # no JSON at all, which others find out
