"""A process that serves: uvicorn, with slow clients cut off, and an end that loses no answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ldm.server.settings import Limits
from ldm.server.state import Server

log = logging.getLogger(__name__)
INTERRUPTED, TERMINATED = 130, 143  # exit codes of programs that SIGINT and SIGTERM end
HEADER_BYTES = 32 * 1024  # of a request: its line and its headers
LAST_SECONDS = 5  # in which answers are sent after the last picture
KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # for lost connections


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGTERM, or Ctrl-C, which raises KeyboardInterrupt.

    What is being drawn ends first, within ``Settings.grace``; a second signal ends the process.
    """
    core: Server = app.state.server
    config = uvicorn.Config(
        app,
        log_level="warning",
        http=protocol_of(core.limits),
        ws="none",
        proxy_headers=False,  # else whoever is on this machine could have any address
        server_header=False,
        limit_concurrency=core.limits.connections,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    server = GracefulServer(config, core)
    server.run(sockets=[listening])
    if core.worker.is_alive():  # in a step that takes long; Python cannot end beside it
        os._exit(INTERRUPTED if server.interrupted else 0)
    if server.interrupted:
        raise KeyboardInterrupt


class GracefulServer(uvicorn.Server):
    """Answers 503 to new jobs after the first signal, and leaves when the last job has ended."""

    def __init__(self, config: uvicorn.Config, core: Server) -> None:
        super().__init__(config)
        self.core, self.settings = core, core.settings
        self.interrupted = False
        self._asked: float | None = None  # when

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal. Nothing more may be done here: the main thread may hold any lock."""
        if self._asked is not None or not self.started:
            os._exit(INTERRUPTED if sig == signal.SIGINT else TERMINATED)
        self.interrupted = sig == signal.SIGINT
        self._asked = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Look whether to stop, ten times a second."""
        if self._asked is not None:
            if not self.core.stopping:
                self.core.drain()
            over = time.monotonic() - self._asked > self.settings.grace
            if over:
                self.core.cancel_all()
            self.should_exit = over or not self.core.worker.is_alive()
        return await super().on_tick(counter)


class Protocol(H11Protocol):
    """HTTP/1.1 with time limits for clients: to send a header, and to read an answer."""

    limits: Limits
    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        keep_alive(transport.get_extra_info("socket"))
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Read on; a header that has begun must end in time."""
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            stop(self._late)
            self._late = None
        elif self._late is None:
            self._expect()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        super().pause_writing()
        self._stuck = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        stop(self._stuck)

    def connection_lost(self, exc: Exception | None) -> None:
        """End all waiting."""
        stop(self._late)
        stop(self._stuck)
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._late = self.loop.call_later(self.limits.header_seconds, self._close)

    def _close(self) -> None:
        self._late = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def stop(timer: asyncio.TimerHandle | None) -> None:
    """Stop a timer, if there is one."""
    if timer is not None:
        timer.cancel()


def protocol_of(limits: Limits) -> type[Protocol]:
    """Return the protocol with a server's limits."""
    return type("LimitedProtocol", (Protocol,), {"limits": limits})


def keep_alive(connection: socket.socket | None) -> None:
    """Have the system notice a peer that is gone without a word, within a minute."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
