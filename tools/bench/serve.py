"""The server: a real ``ldm serve`` and clients in another process, beside a ``Pipeline`` in a loop.

Where pictures are counted, they are as the built-in model draws them by default; where one waits
for the first, of ``STEPS`` steps; where turns are compared, small ones. The clients and the event
loop share the cores with what draws. ``processor`` is the ratio of the processor's time (the loop's
to that of the server's process), which other work on the machine disturbs little.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from ldm.errors import LDMError
from ldm.pipeline import Pipeline
from ldm.server.settings import Limits
from tools.bench.processes import ROOT
from tools.bench.race import Race
from tools.bench.sizes import at

PROMPT, STEPS = "a red car", 4
BODY = {"prompt": PROMPT, "num_inference_steps": STEPS}
SMALL = {"height": 64, "width": 64}
FAIR = 1.5  # by which the waiting of clients may differ
READY = 120.0  # seconds in which a server has to answer
FIRST_PREVIEW, WHOLE_PICTURE = 0.150, 0.400  # seconds, the aims of the page


def whole() -> dict[str, int]:
    """Return the options of a picture as the model draws it: 20 steps, 128 px."""
    return at({}, SMALL | {"num_inference_steps": 2})


@functools.cache
def server() -> tuple[str, int]:
    """Start ``ldm serve``, which ends with this process; return its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the server lives)
    command = [sys.executable, "-m", "ldm", "serve", "--port", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    atexit.register(process.wait, 30)
    atexit.register(process.send_signal, signal.SIGINT)
    address, began = f"http://127.0.0.1:{port}", time.monotonic()
    while time.monotonic() - began < READY:
        if process.poll() is not None:
            break
        try:
            httpx.get(f"{address}/api/models", trust_env=False).raise_for_status()
            return address, process.pid
        except httpx.TransportError:
            time.sleep(0.1)
    log.seek(0)
    raise LDMError(f"ldm serve did not answer: {log.read()[-500:]}")


Loop = tuple[str, int, int | None]  # a client, its first seed, and how many pictures it draws


def clients(loops: list[Loop], previews: bool = False, **more: Any) -> list[dict[str, Any]]:
    """Have clients draw; return what each request saw. See ``tools.bench.clients``."""
    plan = {"url": server()[0], "body": BODY, "previews": previews, "loops": loops, **more}
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench.clients"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise LDMError(f"the clients failed: {done.stderr.strip().splitlines()[-1]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def processor_time() -> float:
    """Return the seconds that the server's process has computed; of 0 where /proc is not."""
    path = Path(f"/proc/{server()[1]}/stat")
    fields = path.read_text().rpartition(")")[2].split() if path.exists() else ["0"] * 13
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def equal(count: int, pictures: int) -> list[Loop]:
    """Return the loops of clients of the same demand."""
    return [(f"client {i}", 1000 * i, pictures) for i in range(count)]


def span(found: list[dict[str, Any]]) -> float:
    """Return the seconds from the first request to the last picture."""
    return max(one["ended"] for one in found) - min(one["began"] for one in found)


@functools.cache
def pipeline() -> Pipeline:
    """Load what draws in a loop, as the server does."""
    pipe = Pipeline.from_pretrained()
    return pipe.optimize() if pipe.device.type == "cpu" else pipe


def draw(seeds: list[int], **options: int) -> list[Image.Image]:
    """Draw the pictures of seeds in one batch."""
    images = pipeline()([f"{PROMPT} {seed}" for seed in seeds], seed=seeds, **options).images
    assert isinstance(images, list)
    return images


def throughput(count: int, each: int, previews: bool = False) -> Race:
    """Race clients in closed loops against batches of as many in a loop."""
    count, each = at((count, each), (min(count, 2), 1))
    options, body = whole(), {"prompt": PROMPT} | whole()
    loops = equal(count, each)
    seeds = [first + i for i in range(each) for _, first, _ in loops]
    size = min(count, Limits().batch)
    chunks = [seeds[i : i + size] for i in range(0, len(seeds), size)]
    taken: list[float] = []
    processor: tuple[list[float], list[float]] = ([], [])

    def call_ours() -> float:
        before = processor_time()
        taken.append(span(clients(loops, previews, body=body)))
        processor[0].append(processor_time() - before)
        return taken[-1]

    def call_theirs() -> float:
        began, before = time.monotonic(), time.process_time()
        for chunk in chunks:
            draw(chunk, **options)
        processor[1].append(time.process_time() - before)
        return time.monotonic() - began

    def more() -> dict[str, Any]:
        found: dict[str, Any] = {"pictures a minute": round(60 * len(seeds) / min(taken))}
        if min(processor[0]):
            found["processor"] = f"{min(processor[1]) / min(processor[0]):.2f}"
        return found

    def check() -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            found = clients(loops[:3], previews, output=folder, body=body)
            worst = 0.0
            for one in found[:6]:
                served = np.asarray(Image.open(Path(folder) / f"{one['seed']}.png")).astype(int)
                (alone,) = draw([one["seed"]], **options)
                worst = max(worst, np.abs(served - np.asarray(alone)).max())
        return float(worst), 0.0

    what = f"{len(seeds)} pictures of {count} client{'s' * (count > 1)}{', watched' * previews}, s"
    return Race(
        what,
        call_ours,
        call_theirs,
        check,
        0.9,
        f"a loop, batch {size}",
        measured=True,
        more=more,
    )


def p95(found: list[dict[str, Any]]) -> dict[str, float]:
    """Return the 95th percentile of each client's waiting, from request to picture."""
    waits: dict[str, list[float]] = {}
    for one in found:
        waits.setdefault(one["client"], []).append(one["ended"] - one["began"])
    return {client: float(np.percentile(own, 95)) for client, own in waits.items()}


def fair(greedy: bool) -> Race:
    """Race the client that waits the longest against the one that waits the least.

    greedy: beside seven clients in closed loops, one has 50 jobs waiting all the time; it is left
    out of the comparison, which is of the modest ones with an eighth of the device each.
    """
    count, each, jobs = at((8, 6, 50), (3, 1, 2))
    last: dict[str, float] = {}

    def alike() -> dict[str, float]:
        return p95(clients(equal(count, each), body=BODY | SMALL))

    def crowded() -> dict[str, float]:
        others: list[Loop] = [("greedy", 10_000 * (i + 1), None) for i in range(jobs)]
        found = p95(clients([*others, *equal(count - 1, each)], body=BODY | SMALL))
        del found["greedy"]
        return found

    def call_ours() -> float:
        last.clear()
        last.update(crowded() if greedy else alike())
        return max(last.values())

    def call_theirs() -> float:
        return max(alike().values()) if greedy else min(last.values())

    peer = "the one that waits the least"
    what = f"{count} equal clients: p95 of the longest waiting, s"
    if greedy:
        peer = f"{count} equal clients"
        what = f"{count - 1} clients beside {jobs} jobs of another: longest p95, s"
    return Race(
        what,
        call_ours,
        call_theirs,
        lambda: (0.0, 0.0),
        1 / FAIR,
        peer,
        measured=True,
        more=lambda: {"between clients": f"{max(last.values()) / min(last.values()):.2f}"},
    )


def latency(until: str, aim: float) -> Race:
    """Race one request on an idle server against what the page aims at."""
    seen: list[float] = []
    alone: list[float] = []

    def call_ours() -> float:
        (one,) = clients([("page", 1, 1)], previews=True)
        seen.append(one[until] - one["began"])
        return seen[-1]

    def call_theirs() -> float:
        began = time.monotonic()
        draw([1], num_inference_steps=STEPS)
        alone.append(time.monotonic() - began)
        return aim

    what = {"first_preview": "to the first preview", "ended": f"to the picture, {STEPS} steps"}
    return Race(
        f"request {what[until]}, s",
        call_ours,
        call_theirs,
        lambda: (0.0, 0.0),
        1.0,
        "the aim",
        turns=7,
        measured=True,
        more=lambda: {"the picture by Pipeline alone": f"{min(alone):.3f}"},
    )


def left() -> Race:
    """Race a request that follows one that was broken off against one on an idle server.

    Each client leaves at its first step of 20 and sends the next request at once, as live mode
    does: the step that is computed then ends first, so that a ratio of 1/2 is one step's waiting.
    """
    body = BODY | {"num_inference_steps": 20}
    waits: list[float] = []

    def call_ours() -> float:
        idle, *followers = clients([("page", 1, 4)], body=body, leave=True)
        waits[:] = [idle["first_step"] - idle["began"]]
        return float(np.median([one["first_step"] - one["began"] for one in followers]))

    return Race(
        "request after one that was broken off, to its first step, s",
        call_ours,
        lambda: waits[0],
        lambda: (0.0, 0.0),
        0.5,
        "an idle server",
        turns=5,
        measured=True,
    )


SECTIONS: dict[str, Callable[[], Race]] = {
    "serve-1": partial(throughput, 1, 8),
    "serve-8": partial(throughput, 8, 3),
    "serve-64": partial(throughput, 64, 1),
    "serve-1-watched": partial(throughput, 1, 8, True),
    "serve-8-watched": partial(throughput, 8, 3, True),
    "serve-fair": partial(fair, False),
    "serve-greedy": partial(fair, True),
    "serve-preview": partial(latency, "first_preview", FIRST_PREVIEW),
    "serve-left": left,
    "serve-picture": partial(latency, "ended", WHOLE_PICTURE),
}
