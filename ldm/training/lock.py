"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ldm.errors import TrainingError


@contextlib.contextmanager
def only_run_in(run: Path) -> Iterator[None]:
    """Hold ``run/lock``, which names this process and host, for the length of a block.

    The system gives up the lock of a process that ends in any way, so a file that a killed run
    left behind harms nobody. Raises TrainingError while another process holds it.
    """
    import fcntl  # not on Windows

    run.mkdir(parents=True, exist_ok=True)
    # Never deleted: a second file of the same name could be locked beside the first.
    with (run / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise TrainingError(
                f"another run works in {run} ({_owner(file.read())}); wait for it, stop it, or "
                "give another output"
            ) from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _owner(text: str) -> str:
    try:
        return "process {pid} on {host}".format(**json.loads(text))
    except (ValueError, KeyError, TypeError):  # it is just writing its name
        return "a process that has just begun"
