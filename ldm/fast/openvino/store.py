"""Converted networks on disk: each in a folder that is named by what it was made from.

They are in ``$LDM_CACHE/openvino``, else ``$XDG_CACHE_HOME/ldm/openvino`` (``~/.cache``). A folder
gets its name when it is whole (``ldm.writing.whole``), so that any number of processes may write
and read. The ones not used for the longest time are removed beyond ``MOST`` bytes in all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from ldm.config.speed import CACHE, user_cache
from ldm.writing.whole import whole_path

MOST = 10 << 30  # bytes of all that is kept; the network that was written last stays anyway
MODEL = "model.xml"  # its weights are in the .bin beside it


def cache_folder() -> Path:
    """Return where converted networks are."""
    own = os.environ.get(CACHE)
    return (Path(own).expanduser() if own else user_cache()) / "openvino"


def find(key: str) -> Path | None:
    """Return the file of a converted network, and count it as used now; None if it is not here."""
    folder = cache_folder() / key
    if not (folder / MODEL).is_file():
        return None
    with contextlib.suppress(OSError):  # a folder of somebody else's, or a read-only one
        os.utime(folder)
    return folder / MODEL


def keep(key: str, write: Callable[[Path], None]) -> Path | None:
    """Write a network with ``write(path of MODEL)``; return its file.

    What cannot be written is not kept, with a warning, and None is returned.
    """
    folder = cache_folder() / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_path(folder) as new:
            new.mkdir()
            write(new / MODEL)
    except (OSError, RuntimeError) as error:  # OpenVINO's of a full disk
        if (folder / MODEL).is_file():  # another process was quicker
            return folder / MODEL
        why = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        warnings.warn(
            f"a converted network is not kept for the next start: {folder}: {why[0]:.200} "
            f"({CACHE} names another folder)",
            stacklevel=2,
        )
        return None
    forget_oldest(folder.parent, folder)
    return folder / MODEL


def forget_oldest(parent: Path, newest: Path) -> None:
    """Remove what was not used for the longest time, until ``MOST`` bytes are left."""
    total = size(newest)
    others = [each for each in parent.iterdir() if each != newest and (each / MODEL).is_file()]
    for folder in sorted(others, key=last_used, reverse=True):
        total += size(folder)
        if total > MOST:
            shutil.rmtree(folder, ignore_errors=True)


def last_used(folder: Path) -> float:
    """Return when a network was used last; 0 if another process has removed it."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def size(folder: Path) -> int:
    """Count the bytes of a folder's files; 0 if another process has removed it."""
    try:
        return sum(each.stat().st_size for each in folder.iterdir())
    except OSError:
        return 0
