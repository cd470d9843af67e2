"""Locks on files that the system gives up when their process ends, however it ends.

They are advisory (``flock``), so nothing but this package heeds them. They tell a file that a
killed process left behind from one in use, where a process's number cannot: containers, and
machines that share a folder, count processes each for themselves.
"""

from __future__ import annotations

import enum
import hashlib
import os
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Network drives lock only what is open for writing.
FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class Outcome(enum.Enum):
    """What came of locking a file."""

    LOCKED = enum.auto()
    BUSY = enum.auto()  # another process, or thread, holds it
    UNSUPPORTED = enum.auto()  # by the file system, or the system


def lock(handle: int, wait: bool = False, shared: bool = False) -> Outcome:
    """Lock an open file until it is closed; ``wait`` for whoever holds it.

    shared: as those do who only look whether it is in use; several of them may have it at once.
    """
    if fcntl is None:
        return Outcome.UNSUPPORTED
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return Outcome.BUSY
    except OSError:  # ENOLCK, EOPNOTSUPP, …
        return Outcome.UNSUPPORTED
    return Outcome.LOCKED


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has its name: another process may have removed it."""
    try:
        there, own = os.lstat(path), os.fstat(handle)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


@cache
def machine() -> str:
    """Return eight letters for this machine since it was started; containers on it share them.

    Some network drives lock within one machine alone: a lock that looks free counts only there.
    """
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return hashlib.sha256(name.encode()).hexdigest()[:8]
