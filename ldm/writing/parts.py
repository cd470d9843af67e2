"""Part folders: where files are written before they get their names.

A part folder ``.ldm-MACHINE-RANDOM.part`` stands in the folder that it writes into, so that its
files get their names by being renamed. In it, a file ``.ldm-lock`` is locked while its process
works. A process that is killed leaves the folder behind with a lock that is free: whoever next
writes into the same folder clears it. Where files cannot be locked, and of other machines, whose
locks need not be visible here, part folders are cleared when they are a day old.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ldm.writing.locks import FLAGS, Outcome, is_at, lock, machine

PREFIX, PART, CLAIM = ".ldm-", ".part", ".claim"
# In a part folder, beside what is written, which never has such a name.
LOCK, OLD, GONE = (f"{PREFIX}{name}" for name in ("lock", "old", "gone"))
UNLOCKED_SECONDS = 24 * 3600.0  # after which what has no lock is nobody's
SHARE = 0.01  # of the time, at most, goes into looking for leftovers in a folder
ALWAYS = 0.002  # seconds that a look may take anyway

_looks: dict[str, tuple[float, float]] = {}  # folder: when it was looked at, for how long


@contextlib.contextmanager
def part_folder(folder: Path) -> Iterator[Path]:
    """Provide a new, locked folder in ``folder``; remove it in the end with all that is in it.

    What killed processes left in ``folder`` is cleared before. Raises OSError.
    """
    clear_leftovers(folder)
    part, handle = _make(folder)
    try:
        yield part
    finally:
        _remove(part)
        if handle is not None:
            os.close(handle)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder, and nothing that is in use.

    An existing file or folder that was being replaced gets its place back if that is empty.
    Folders with very many files are not looked through each time. What fails is left.
    """
    key, now = os.path.abspath(folder), time.monotonic()  # noqa: PTH100
    last, took = _looks.get(key, (0.0, 0.0))
    if took > ALWAYS and now - last < took / SHARE:
        return
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if entry.name.startswith(PREFIX)]
    except OSError:
        return
    took = time.monotonic() - now
    if took > ALWAYS:
        _looks[key] = now, took
    for path in found:
        with contextlib.suppress(OSError):
            _clear(path)


def _make(folder: Path) -> tuple[Path, int | None]:
    """Make a part folder; also return its lock's open file, None where there are no locks."""
    while True:
        part = folder / f"{PREFIX}{machine()}-{os.urandom(6).hex()}{PART}"
        part.mkdir()
        try:
            handle = os.open(part / LOCK, FLAGS | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another process took the empty folder for a leftover
            continue
        except BaseException:
            part.rmdir()
            raise
        if lock(handle, wait=True) is Outcome.UNSUPPORTED:
            os.close(handle)
            return part, None
        if is_at(handle, part / LOCK):  # else likewise
            return part, handle
        os.close(handle)


def _remove(part: Path) -> None:
    """Remove a part folder: last its lock, without which nobody could tell that it is free.

    What it was replacing, and has not replaced, gets its place back; see ``whole.whole_path``.
    """
    with contextlib.suppress(OSError):
        if (part / OLD).is_dir():
            for old in list((part / OLD).iterdir()):
                if not os.path.lexists(part.parent / old.name):
                    old.rename(part.parent / old.name)
        for path in list(part.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        (part / LOCK).unlink(missing_ok=True)
        part.rmdir()


def _clear(path: Path) -> None:
    mode = os.lstat(path).st_mode
    if stat.S_ISDIR(mode) and path.name.endswith(PART):
        _clear_folder(path)
    elif stat.S_ISREG(mode) and path.name.endswith((PART, CLAIM)):  # a claim, or of ldm 0.1
        with _if_free(path, path) as free:
            if free:
                path.unlink()


def _clear_folder(part: Path) -> None:
    with contextlib.suppress(OSError):  # just made, or all but removed
        part.rmdir()
        return
    if not (part / LOCK).is_file():
        if _is_old(part):
            _remove(part)
        return
    with _if_free(part / LOCK, part) as free:
        if free:
            _remove(part)


@contextlib.contextmanager
def _if_free(path: Path, whole: Path) -> Iterator[bool]:
    """Provide whether nobody uses ``whole``, whose lock is ``path``, and hold the lock if so."""
    handle = os.open(path, FLAGS)
    outcome = lock(handle, shared=True)
    try:
        if outcome is Outcome.LOCKED and _is_of_here(whole):
            yield is_at(handle, path)
            return
    finally:
        os.close(handle)
    yield outcome is not Outcome.BUSY and _is_old(whole)


def _is_of_here(path: Path) -> bool:
    of, dash, _ = path.name.removeprefix(PREFIX).partition("-")
    return not dash or of == machine()


def _is_old(path: Path) -> bool:
    return time.time() - os.lstat(path).st_mtime > UNLOCKED_SECONDS
