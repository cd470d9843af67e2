"""What runs that were killed left unfinished in their folders, and how it is removed."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from ldm.writing import clear_leftovers


def clear_run(run: Path) -> None:
    """Remove unfinished files and checkpoints of runs that were killed.

    Only the process that holds the run's lock may call it. What cannot be removed stays.
    """
    for left in (run / "checkpoints").glob("[0-9]*.partial"):
        with contextlib.suppress(OSError):
            remove(left)
    folders = (path for path in run.glob("*/") if not path.is_symlink())
    for folder in (run, *folders):
        clear_leftovers(folder)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
