"""The gate: what a reader may do with a damaged file, and the counts of what it did.

It may read the file, or refuse it by an ``LDMError``, within ten seconds and two
gigabytes. Anything else is an escape.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ldm.errors import LDMError
from tests.fuzz.mutate import mutate
from tests.fuzz.reader import Reader

MOST_SECONDS = 10
MOST_BYTES = 2 << 30
STATUS = Path("/proc/self/status")


class Hang(BaseException):
    """A case took too long; no ``except Exception`` of a reader catches it."""


@dataclass
class Figures:
    """What a reader did with its cases."""

    reader: str
    cases: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    escaped: int = 0
    escapes: list[str] = field(default_factory=list)  # the first of each kind, with its number


@contextlib.contextmanager
def limits(seconds: float = MOST_SECONDS, size: int = MOST_BYTES) -> Iterator[None]:
    """Raise Hang after so many seconds; let the memory grow by so many bytes only.

    Memory that is asked for beyond them is a MemoryError, or PyTorch's RuntimeError.
    """

    def stop(_: int, frame: FrameType | None) -> None:
        where = "".join(traceback.format_stack(frame, limit=3)) if frame else ""
        raise Hang(f"more than {seconds} s: {where}")

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = virtual_size() + size
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == -1 else min(most, hard), hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def virtual_size() -> int:
    """Count the bytes of this process's address space."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines["VmSize"].split()[0])


def try_case(reader: Reader, path: Path) -> tuple[bool, str | None]:
    """Read one file. Returns whether it was refused, and what escaped."""
    try:
        with limits(), warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            reader.read(path)
    except LDMError as error:
        return True, None if str(error) else "an error without a message"
    except Hang as error:
        return True, str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return True, "".join(traceback.format_exception(error, limit=-6))
    library = [str(one.message) for one in doubts if not issubclass(one.category, UserWarning)]
    return False, f"a warning of another library: {library[0]}" if library else None


def fuzz(
    reader: Reader,
    folder: Path,
    *,
    cases: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    first: int = 0,
) -> Figures:
    """Try damaged files, until so many cases or seconds are over; return what happened.

    Each case depends on the seed and its own number alone, so that one can be tried again.
    """
    reader.surroundings(folder)
    seeds = list(reader.seeds())
    path = folder / reader.file
    figures, kinds = Figures(reader.name), set[str]()
    start = time.perf_counter()
    number = first
    while (cases is None or figures.cases < cases) and (
        seconds is None or time.perf_counter() - start < seconds
    ):
        path.write_bytes(case(reader, seeds, seed, number))
        before = time.perf_counter()
        refused, escaped = try_case(reader, path)
        figures.slowest = max(figures.slowest, time.perf_counter() - before)
        figures.cases += 1
        figures.refused += refused
        if escaped is not None:
            figures.escaped += 1
            kind = kind_of(escaped)
            if kind not in kinds:
                kinds.add(kind)
                figures.escapes.append(f"{reader.name}, seed {seed}, case {number}: {escaped}")
        number += 1
    figures.seconds = time.perf_counter() - start
    return figures


def kind_of(escaped: str) -> str:
    """Return what escapes of one kind have in common: the line of the code that raised."""
    places = [line for line in escaped.splitlines() if line.lstrip().startswith("File ")]
    return places[-1] if places else escaped[:40]


def case(reader: Reader, seeds: list[bytes], seed: int, number: int) -> bytes:
    """Make a damaged file."""
    rng = random.Random(f"{reader.name} {seed} {number}")
    return mutate(rng.choice(seeds), rng, seeds, reader.tokens)
