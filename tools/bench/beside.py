"""Beside other work: one busy core, and several drawings at once."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from tools.bench import loops, networks, processes
from tools.bench.race import Race
from tools.bench.sizes import at


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def beside(race: Race) -> Race:
    """Run both sides of a race beside a busy core."""

    def seconds(action: Callable[[], object]) -> float:
        with busy_core():
            began = time.perf_counter()
            action()
            return time.perf_counter() - began

    ours, theirs = partial(seconds, race.ours), partial(seconds, race.theirs)
    what = f"{race.what}, beside a busy core"
    return replace(race, what=what, ours=ours, theirs=theirs, goal=1.0, measured=True, more=dict)


def crowd(count: int) -> Race:
    """Race as many drawings at once against the same ones, one after another."""
    work, pictures, steps = Path(tempfile.mkdtemp()), at(8, 1), at([], ["--steps", "2"])
    drawn = at(count, 1)  # tiny ones are drawn in this process, which has one prompt at a time

    def draw(number: int) -> None:
        picture = work / f"{number}.png"
        options = (
            "--seed",
            str(number),
            "--num-images",
            str(pictures),
            *steps,
            "--force",
            "--quiet",
            "--output",
        )
        processes.python("-m", "ldm.cli.generate", "a red car", *options, str(picture))

    def at_once() -> None:
        with ThreadPoolExecutor(drawn) as pool:
            list(pool.map(draw, range(drawn)))

    def in_turn() -> None:
        for number in range(drawn):
            draw(number)

    what = f"{count} processes at once, {pictures} pictures each, s"
    return Race(what, at_once, in_turn, lambda: (0.0, 0.0), 0.8, "one after another", turns=2)


SECTIONS: dict[str, Callable[[], Race]] = {
    "beside-cold": lambda: beside(processes.cold()),
    **{f"beside-{name}": lambda f=make: beside(f()) for name, make in loops.warm(1, 1.0).items()},
    "beside-unet-bf16": lambda: beside(networks.unet_bf16()),
    "beside-vae": lambda: beside(networks.vae()),
    "crowd-2": partial(crowd, 2),
    "crowd-3": partial(crowd, 3),
}
