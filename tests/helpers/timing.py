"""The processor's time of commands: the wall's depends on what else the machine does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

INFO = "import sys; from ldm.cli.info import main; main(); assert 'torch' not in sys.modules"


def info_seconds(path: Path, runs: int = 3) -> float:
    """Return the least processor time of ``ldm info PATH``, start included, without PyTorch."""
    times = []
    for _ in range(runs):
        before = os.times()
        subprocess.run([sys.executable, "-c", INFO, str(path)], check=True, capture_output=True)
        after = os.times()
        children = (after.children_user, after.children_system)
        times.append(sum(children) - before.children_user - before.children_system)
    return min(times)


TRIES = 3  # a collection of garbage, or another process, may lengthen one
MOST_RATIO = 6.0  # of the times of four times the size


def check_linear(
    seconds: Callable[[int], float], short: int, floor: float, long: int | None = None
) -> None:
    """Fail if four times the size takes long, and much more than four times as long.

    seconds: of the processor, for a size. floor: seconds that a busy machine may take.
    """
    long, took = 4 * short if long is None else long, []
    for _ in range(TRIES):
        took.append((0.0, seconds(long)))
        if took[-1][1] < floor:
            return
        took[-1] = (seconds(short), took[-1][1])
        if took[-1][1] < MOST_RATIO * took[-1][0]:
            return
    raise AssertionError(f"seconds of {short:,} and {long:,}: {took}")
