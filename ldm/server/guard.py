"""What every request passes before the routes: who sent it, how much, how often.

Plain ASGI, so that streams and disconnects pass through as they are.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping

from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ldm.server import keys
from ldm.server.bodies import Bodies, ClientLeft, check_content, discard
from ldm.server.errors import ServerError
from ldm.server.hosts import Doors, is_loopback
from ldm.server.keys import Key, NoKeyError
from ldm.server.metrics import Metrics
from ldm.server.rates import Buckets, network_of
from ldm.server.settings import NETWORK_RATE, Settings
from ldm.server.shapes import describe_error

log = logging.getLogger(__name__)
HEALTH = "/health"  # for whoever watches over the process: neither a key nor a name is needed
GUESSES, GUESSES_A_MINUTE = 10, 6.0  # of an API key, of an address
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # "no-referrer" sends the form of the key as from "null"
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
POLICY = "Content-Security-Policy"  # the page has its own
CORS_HEADERS = ("Authorization", "Content-Type", "X-API-Key", "X-Client-Id")


class RateError(ServerError):
    """A client that sends too much; ``seconds`` later it may again."""

    status = 429

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(f"{message}; try again in {seconds:.1f} s")
        self.seconds = seconds


class Guard:
    """The outermost middleware.

    ``app`` is asked only if the checks pass; all errors that it does not answer are answered here.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        limits = settings.limits
        self.app = app if not settings.allow_origins else with_cors(app, settings.allow_origins)
        self.metrics = metrics
        self.doors = Doors(settings)
        self.key = None if settings.api_key is None else Key(settings.api_key)
        self.bodies = Bodies(limits)
        self.limits = limits
        rate = NETWORK_RATE if limits.rate is None else limits.rate
        self.rates = Buckets(rate, max(1.0, limits.burst))
        self.guesses = Buckets(GUESSES_A_MINUTE / 60, GUESSES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no route has WebSockets
            return await send({"type": "websocket.close", "code": 1008})
        answer = Answer(send)
        began = time.monotonic()
        try:
            await self.check_and_answer(scope, receive, answer)
        except ClientLeft:
            answer.status = 499
        except Exception as error:
            content, status = describe_error(error, scope["path"])
            if status >= 500 and not isinstance(error, ServerError):
                log.exception("%s %s failed", scope["method"], scope["path"])
            if answer.status is not None:
                raise  # it has begun: the connection has to break off
            await refusal(scope, content, status, error)(scope, receive, answer)
        finally:
            self.metrics.answered(scope, answer.status, time.monotonic() - began)

    async def check_and_answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. Raises ServerError for one that is refused, ClientLeft."""
        headers = Headers(scope=scope)
        if scope["path"] == HEALTH:
            return await self.app(scope, receive, send)
        try:
            self.check_sender(scope, headers)
        except ServerError:
            await discard(receive)  # a client that still writes would see no answer
            raise
        body = await self.bodies.read(headers, receive)
        size = len(body)
        try:
            if self.key is not None and scope["path"] == keys.LOGIN:
                return await self.login(scope, body)(scope, receive, send)
            check_content(headers, body, self.limits)
            replay = replayed(body, receive)
            del body
            await self.app(scope, replay, send)
        finally:
            self.bodies.release(size)

    def check_sender(self, scope: Scope, headers: Headers) -> None:
        """Raise ServerError for a request that may not be sent from there, or not so often."""
        self.doors.check_host(headers)
        self.check_rate(scope)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return  # it has no key, and is answered without the routes
        self.doors.check_origin(scope["method"], headers)
        if scope["path"] != keys.LOGIN:
            self.check_key(scope, headers)

    def check_rate(self, scope: Scope) -> None:
        """Raise RateError for an address that sends too often."""
        host = address(scope)
        if self.limits.rate is None and is_loopback(host):
            return
        seconds = self.rates.take(network_of(host))
        if seconds:
            raise RateError(f"this server takes {self.rates.rate:g} requests a second", seconds)

    def check_key(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Raise NoKeyError for a request without the key, RateError after many guesses."""
        if self.key is None:
            return
        self.check_guesses(scope)
        found = self.key.find(headers)
        if found == "right":
            return
        if found == "wrong":
            self.guesses.take(network_of(address(scope)))
            raise NoKeyError("the API key is wrong", "Authorization")
        raise NoKeyError(
            "this server needs its API key: Authorization: Bearer KEY, or X-API-Key: KEY",
            "Authorization",
        )

    def check_guesses(self, scope: Scope) -> None:
        """Raise RateError for an address that has given many wrong keys."""
        seconds = self.guesses.wait(network_of(address(scope)))
        if seconds:
            raise RateError("too many wrong API keys", seconds)

    def login(self, scope: Scope, body: bytes) -> Response:
        """Answer the form that asks a browser's user for the key."""
        assert self.key is not None
        if scope["method"] != "POST":
            return form_response("", 200)
        self.check_guesses(scope)
        if not self.key.matches(keys.key_of_form(body)):
            self.guesses.take(network_of(address(scope)))
            return form_response("This is not the key.", 401)
        answer = RedirectResponse("/", 303)
        secure = scope.get("scheme") == "https"
        answer.headers["Set-Cookie"] = keys.session_cookie(self.key, secure)
        return answer


class Answer:
    """Sends an answer with the headers that every one has, and knows its status."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        """Send a message of ASGI."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault(POLICY, "frame-ancestors 'none'")
        await self.send(message)


def refusal(scope: Scope, content: object, status: int, error: Exception) -> Response:
    """Return the answer to an error. A body that is not read ends the connection."""
    if isinstance(error, NoKeyError) and wants_page(scope):
        return form_response("", status)
    headers = {}
    if isinstance(error, NoKeyError):
        headers["WWW-Authenticate"] = 'Bearer realm="ldm"'
    elif status in (429, 503):
        seconds = error.seconds if isinstance(error, RateError) else 5.0
        headers["Retry-After"] = str(math.ceil(seconds))
    headers["Connection"] = "close"
    return JSONResponse(content, status, headers)


def form_response(words: str, status: int) -> Response:
    """Return the page that asks for the key."""
    headers = {POLICY: keys.FORM_POLICY, "Cache-Control": "no-store"}
    return Response(keys.form(words), status, headers, "text/html; charset=utf-8")


def wants_page(scope: Scope) -> bool:
    """Whether a browser's user wants to see something at an address."""
    return scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")


def with_cors(app: ASGIApp, origins: Iterable[str]) -> ASGIApp:
    """Let pages of other sites use an application, with the key but without cookies."""
    methods = ("GET", "POST", "PUT", "PATCH", "DELETE")
    return CORSMiddleware(app, tuple(origins), methods, CORS_HEADERS)


def address(scope: Scope) -> str:
    """Return the address that a request comes from."""
    client = scope.get("client")
    return client[0] if client else "local"


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body that was read, and what comes after it."""
    left = [body]

    async def receive_again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return receive_again
