"""Progress of a run on stderr: a bar in a terminal, now and then a line in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ldm.cli.printed import notify

BAR = "{desc}{percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}<{remaining}, {rate_inv_fmt}]"
EVERY = 10.0  # seconds between two lines in a log file


class Update(Protocol):
    """Shows that a step is done."""

    def __call__(self, step: int) -> None:
        """Show it."""


@contextmanager
def showing(total: int, quiet: bool) -> Iterator[Update]:
    """Provide what shows the steps of a run; short runs are not shown in log files."""
    if quiet or sys.stderr is None:
        yield lambda step: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, unit="step", bar_format=BAR, leave=False) as bar:
            yield lambda step: bar.update(step - bar.n) and None
    else:
        yield Lines(total)


class Lines:
    """Writes "step 30 of 50, 12 s left" every few seconds."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.began = self.shown = time.monotonic()

    def __call__(self, step: int) -> None:
        """Write a line if it is time for one."""
        now = time.monotonic()
        if now - self.shown < EVERY or not 0 < step < self.total:
            return
        self.shown = now
        left = (now - self.began) / step * (self.total - step)
        notify(f"step {step} of {self.total}, {left:.0f} s left")
