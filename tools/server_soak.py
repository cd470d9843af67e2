"""A soak of ``ldm serve``: many clients of all kinds for some minutes, on this machine.

    python -m tools.server_soak --minutes 10

Some draw, by every interface that the server has; some cancel, vanish while they wait or while
their picture is drawn, send bodies that are none, or send slowly. In the end, every request has had
its answer, none of them 5xx; nothing was drawn for those who left; and memory is flat.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
SIZE = 64
QUICK = {"prompt": "a red car", "width": SIZE, "height": SIZE, "num_inference_steps": 2}
LONG = QUICK | {"num_inference_steps": 150, "num_images_per_prompt": 2}  # of those who leave
BAD = (
    b"", b"{", b"[]", b"null", b"[" * 5000, b'{"prompt": NaN}', b'{"seed": 1e999}', b"\xff\xfe",
    b'{"prompt": "\\ud800"}', b'{"width": 1000000000}', b'{"image": "aGVsbG8="}',
    b'{"image": "/etc/passwd"}', b'{"negative_prompt": 3}', b'{"model": "nobody"}', b'{"x": 1}',
    b'{"prompt": ["a", 3]}', b'{"num_images_per_prompt": -1}', b'{"guidance_scale": "high"}',
    b'{"prompt": "' + b"a" * 100_000 + b'"}',
)  # fmt: skip
WARM_UP = 0.3  # of the time, in which caches and pools fill
GROWTH = 0.05  # of the memory, from the middle of the time to its end
LONG_ENOUGH = 120.0  # seconds from which memory says something


@dataclass
class Tally:
    """What happened: counts, failures in words, and figures over time."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)
    pictures: int = 0  # that were asked for, and waited for
    jobs: int = 0
    memory: list[float] = field(default_factory=list)  # MB, once a second

    def check(self, right: bool, words: str) -> None:
        """Note a failure."""
        if not right:
            self.failures.append(words)


class Soak:
    """Clients of a server at an address."""

    def __init__(self, url: str, seed: int = 0) -> None:
        self.url, self.random = url, random.Random(seed)
        self.host, self.port = re.fullmatch(r"http://([\d.]+):(\d+)", url).groups()  # type: ignore[union-attr]
        self.tally = Tally()
        self.client = httpx.AsyncClient(base_url=url, timeout=300)
        self.kinds: list[Callable[[], Awaitable[None]]] = [
            *[self.draw] * 4, *[self.poll] * 3, self.cancel, self.cancel, self.leave_drawing,
            self.leave_drawing, self.failing, self.leave_at_once, self.bad_body, self.bad_body,
            self.slow_header, self.slow_body, self.other_site, self.read, self.read,
        ]  # fmt: skip

    async def run(self, seconds: float, clients: int) -> Tally:
        """Send requests for some time, then wait until the server rests, and judge."""
        paths = (await self.client.get("/openapi.json")).json()["paths"]
        if "/sdapi/v1/txt2img" in paths:
            self.kinds += [self.a1111] * 2
        if "/v1/images/generations" in paths:
            self.kinds += [self.openai] * 2
        end = time.monotonic() + seconds
        watching = asyncio.create_task(self.watch(end))
        await asyncio.gather(*(self.live(end) for _ in range(clients)))
        await watching
        await self.judge(seconds)
        await self.client.aclose()
        return self.tally

    async def live(self, end: float) -> None:
        """Be one client after the other."""
        while time.monotonic() < end:
            kind = self.random.choice(self.kinds)
            self.tally.counts[kind.__name__] += 1
            try:
                await kind()
            except Exception as error:
                self.tally.failures.append(f"{kind.__name__}: {type(error).__name__}: {error}")

    async def watch(self, end: float) -> None:
        """Note the memory, once a second."""
        while time.monotonic() < end:
            figures = await self.figures()
            self.tally.memory.append(figures["process_resident_memory_bytes"] / 1e6)
            await asyncio.sleep(1)

    async def figures(self) -> dict[str, float]:
        """Read /metrics."""
        text = (await self.client.get("/metrics")).text
        rows = (row.rsplit(" ", 1) for row in text.splitlines() if not row.startswith("#"))
        return {name: float(value) for name, value in rows}

    async def judge(self, seconds: float) -> None:
        """Compare the server's figures with what the clients saw."""
        tally = self.tally
        for _ in range(300):
            figures = await self.figures()
            ended = sum(v for name, v in figures.items() if name.startswith("ldm_jobs_total"))
            busy = figures["ldm_queue_jobs"] or figures["ldm_drawing_pictures"]
            if not busy and ended >= tally.jobs:
                break
            await asyncio.sleep(0.1)
        tally.check(not busy, "the queue does not become empty")
        tally.check(ended == tally.jobs, f"{tally.jobs} jobs were made, but {ended:.0f} ended")
        drawn = figures["ldm_pictures_total"]
        tally.check(
            drawn == tally.pictures, f"{drawn:.0f} pictures were drawn, not {tally.pictures}"
        )
        left = sum(tally.counts[name] for name in ("leave_drawing", "leave_at_once", "cancel"))
        unwanted = figures["ldm_unwanted_steps_total"]
        # One step of two pictures each, which was being computed when its client left.
        tally.check(unwanted <= 2 * left, f"{unwanted:.0f} steps were drawn for nobody")
        for name, value in figures.items():
            if re.search(r'^ldm_requests_total.*status="5', name) and value:
                tally.failures.append(f"{name} is {value:.0f}")
        tally.counts["pictures"], tally.counts["jobs"] = tally.pictures, tally.jobs
        tally.counts["unwanted steps"] = int(unwanted)
        tally.counts["open files"] = int(figures["process_open_fds"])
        if seconds >= LONG_ENOUGH:
            first, last = self.memory()
            tally.check(last <= first * (1 + GROWTH), f"memory grew from {first:.0f} to {last:.0f}")

    def memory(self) -> tuple[float, float]:
        """Return the memory after the warm-up and at the end, in MB."""
        values = self.tally.memory[int(len(self.tally.memory) * WARM_UP) :]
        part = max(1, len(values) // 5)
        return statistics.median(values[:part]), statistics.median(values[-part:])

    # The kinds of clients.

    def body(self, of: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Return a body; some of these are drawn together, some are not."""
        scale = self.random.choice((2.0, 3.0))
        return of | {"guidance_scale": scale, "seed": self.random.randrange(1000)} | changes

    def expect(self, answer: httpx.Response, *statuses: int) -> None:
        """Note an answer of another status."""
        words = f"{answer.request.url.path}: {answer.status_code} {answer.text:.200}"
        self.tally.check(answer.status_code in statuses, words)

    async def draw(self) -> None:
        """Draw, and read the events to their end."""
        count = self.random.choice((1, 1, 3))
        body = self.body(QUICK, num_images_per_prompt=count)
        answer = await self.client.post("/api/draw", json=body)
        self.expect(answer, 200)
        last = json.loads(answer.text.strip().rpartition("data: ")[2])
        self.tally.jobs += 1
        self.tally.pictures += count
        self.tally.check(last["state"] == "done" and len(last["pictures"]) == count, str(last))

    async def poll(self) -> None:
        """Make a job, look at it until it ends, and get the picture."""
        job = await self.make(self.body(QUICK))
        while job["state"] in ("queued", "drawing"):
            await asyncio.sleep(0.05)
            job = (await self.client.get(f"/api/jobs/{job['id']}")).json()
        self.tally.pictures += 1
        picture = await self.client.get(job["pictures"][0]["url"])
        self.tally.check(picture.content[1:4] == b"PNG", f"no picture: {picture.text:.100}")

    async def make(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make a job."""
        answer = await self.client.post("/api/jobs", json=body)
        self.expect(answer, 202)
        self.tally.jobs += 1
        job: dict[str, Any] = answer.json()
        return job

    async def cancel(self) -> None:
        """Make a job, and cancel it while it waits or is drawn."""
        job = await self.make(self.body(LONG))
        await asyncio.sleep(self.random.choice((0, 0.1)))
        answer = await self.client.delete(f"/api/jobs/{job['id']}")
        self.tally.check(answer.json()["state"] == "cancelled", answer.text[:200])

    async def leave_drawing(self) -> None:
        """Vanish after the first events."""
        self.tally.jobs += 1
        async with self.client.stream("POST", "/api/draw", json=self.body(LONG)) as answer:
            async for line in answer.aiter_lines():
                if '"drawing"' in line or self.random.random() < 0.1:
                    return

    async def leave_at_once(self) -> None:
        """Vanish right after the request; there is an event only if it was read."""
        content = json.dumps(self.body(LONG)).encode()
        reader, writer = await self.connect("/api/draw", len(content))
        writer.write(content)
        await writer.drain()
        if await reader.read(1):
            self.tally.jobs += 1
        writer.close()

    async def connect(
        self, path: str, length: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection, and send the header of a request."""
        reader, writer = await asyncio.open_connection(self.host, int(self.port))
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode())
        return reader, writer

    async def bad_body(self) -> None:
        """Send what is no request."""
        path = self.random.choice(("/api/draw", "/api/jobs"))
        content = self.random.choice(BAD)
        headers = {"Content-Type": "application/json"}
        answer = await self.client.post(path, content=content, headers=headers)
        self.expect(answer, 400, 404, 413, 422)

    async def failing(self) -> None:
        """Ask for what the server may find out at once, or only when it is drawn."""
        answer = await self.client.post("/api/jobs", json=QUICK | {"sampler": "eulr"})
        self.expect(answer, 202, 400, 404, 422)
        self.tally.jobs += answer.status_code == 202

    async def slow_header(self) -> None:
        """Send half a header, and vanish."""
        _, writer = await asyncio.open_connection(self.host, int(self.port))
        writer.write(b"POST /api/draw HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
        await asyncio.sleep(self.random.choice((0.1, 2.0)))
        writer.close()

    async def slow_body(self) -> None:
        """Send a body in pieces, and vanish before its end."""
        _, writer = await self.connect("/api/draw", 1_000_000)
        for _ in range(5):
            writer.write(b" " * 20_000)
            await asyncio.sleep(0.1)
        writer.close()

    async def other_site(self) -> None:
        """Be a page of another site."""
        headers = {"Origin": "https://evil.example"}
        self.expect(await self.client.post("/api/draw", json=QUICK, headers=headers), 403)
        self.expect(await self.client.get("/", headers={"Host": "evil.example"}), 403)

    async def read(self) -> None:
        """Read what changes nothing."""
        path, status = self.random.choice(
            (("/", 200), ("/health", 200), ("/api/models", 200), ("/api/jobs/nobody", 404))
        )
        self.expect(await self.client.get(path), status)

    async def a1111(self) -> None:
        """Draw by A1111's interface."""
        body = {"prompt": "a dog", "width": SIZE, "height": SIZE, "steps": 2, "cfg_scale": 2}
        answer = await self.client.post("/sdapi/v1/txt2img", json=body)
        self.expect(answer, 200)
        self.tally.jobs += 1
        self.tally.pictures += 1
        self.tally.check(len(answer.json()["images"]) == 1, answer.text[:100])

    async def openai(self) -> None:
        """Draw by OpenAI's interface."""
        body = {"prompt": "a cat", "size": f"{SIZE}x{SIZE}", "num_inference_steps": 2}
        answer = await self.client.post("/v1/images/generations", json=body)
        self.expect(answer, 200)
        self.tally.jobs += 1
        self.tally.pictures += 1
        self.tally.check(len(answer.json()["data"]) == 1, answer.text[:100])


def serve() -> None:
    """Serve as ``ldm serve``, but keep few pictures: else these fill memory for a while."""
    from ldm.cli.serve import bind
    from ldm.server.app import create_app
    from ldm.server.serving import serve
    from ldm.server.settings import Limits, Settings

    listening = bind("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    serve(create_app(Settings(limits=Limits(kept_bytes=2_000_000))), listening)


def soak(seconds: float, clients: int = 12, seed: int = 0) -> tuple[Tally, int, str]:
    """Start a server, soak it, and stop it; returns the tally, its exit code and its log."""
    command = [sys.executable, "-m", "tools.server_soak", "--serve"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    try:
        url = process.stderr.readline().strip()
        gathered: list[str] = []

        async def run() -> Tally:
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(None, lambda: gathered.extend(process.stderr))  # type: ignore[arg-type]
            tally = await Soak(url, seed).run(seconds, clients)
            process.terminate()
            await reading
            return tally

        tally = asyncio.run(run())
        return tally, process.wait(60), "".join(gathered)
    finally:
        if process.poll() is None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


def main() -> int:
    """Soak, and print what happened; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return 0
    tally, code, log = soak(60 * arguments.minutes, arguments.clients, arguments.seed)
    for name, count in sorted(tally.counts.items()):
        print(f"{name:15} {count:8,}")
    every = max(1, len(tally.memory) // 20)
    print("memory, MB:", *(f"{value:.0f}" for value in tally.memory[::every]))
    tracebacks = log.count("Traceback")
    print(f"exit code {code}, {tracebacks} tracebacks in the log")
    for words, count in collections.Counter(tally.failures).most_common(20):
        print(f"wrong, {count} times: {words}")
    if tracebacks:
        print(log[-4000:])
    return int(bool(tally.failures or code or tracebacks))


if __name__ == "__main__":
    sys.exit(main())
