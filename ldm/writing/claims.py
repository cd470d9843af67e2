"""Claims: of several processes with the same work, one takes each part of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ldm.writing.locks import FLAGS, Outcome, is_at, lock
from ldm.writing.parts import CLAIM, PREFIX


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Claim a path that is to be written; provide False if another process has claimed it.

    The claim is a file beside the path, which is locked for the length of the block. One that a
    killed process left is free. Where files cannot be locked, every claim is granted.
    """
    handle, granted = _open(path)
    try:
        yield granted
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                _file(path).unlink(missing_ok=True)
            os.close(handle)


def wait_until_free(path: Path) -> None:
    """Wait until no process claims a path."""
    try:
        handle = os.open(_file(path), FLAGS)
    except OSError:
        return
    try:
        lock(handle, wait=True)
    finally:
        os.close(handle)


def _file(path: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return path.with_name(f"{PREFIX}{digest[:20]}{CLAIM}")


def _open(path: Path) -> tuple[int | None, bool]:
    """Return the claim's open file, if there can be one, and whether the claim is granted."""
    file = _file(path)
    while True:
        try:
            handle = os.open(file, FLAGS | os.O_CREAT, 0o666)
        except OSError:  # a full disk, a read-only folder, another user's claim
            return None, True
        outcome = lock(handle)
        if outcome is Outcome.LOCKED and is_at(handle, file):
            return handle, True
        if outcome is Outcome.BUSY and lock(handle, shared=True) is Outcome.BUSY:
            os.close(handle)
            return None, False
        os.close(handle)
        if outcome is Outcome.UNSUPPORTED:
            with contextlib.suppress(OSError):
                file.unlink()
            return None, True
        # Else whoever had it removed it just now, or looked whether it is in use.
