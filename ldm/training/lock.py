"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ldm.errors import TrainingError
from ldm.training.foreign import kind_of_file, parse_json

MOST = 4096  # characters of the file that are read


@contextlib.contextmanager
def only_run_in(run: Path) -> Iterator[None]:
    """Hold ``run/lock``, which names this process and host, for the length of a block.

    The system gives up the lock of a process that ends in any way, so a file that a killed run
    left behind harms nobody. Raises TrainingError while another process holds it.
    """
    import fcntl  # not on Windows

    with open_lock(run) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise TrainingError(
                f"another run works in {run} ({_owner(file.read(MOST))}); wait for it, stop it, or "
                "give another output"
            ) from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def open_lock(run: Path) -> TextIO:
    """Open ``run/lock``. Raises TrainingError where that cannot be."""
    path = run / "lock"
    try:
        run.mkdir(parents=True, exist_ok=True)
        if path.exists() and (kind := kind_of_file(path)):
            raise OSError(errno.EINVAL, f"it is {kind}", str(path))
        # Never deleted: a second file of the same name could be locked beside the first.
        return path.open("a+", encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(
            f"{str(path)!r:.300} cannot be written ({reason}); give another output"
        ) from None


def _owner(text: str) -> str:
    try:
        owner = parse_json(text)
        process, host = owner["pid"], owner["host"]
    except (ValueError, KeyError, TypeError):  # it is just writing its name
        return "a process that has just begun"
    return f"process {process!s:.20} on {host!s:.80}"
