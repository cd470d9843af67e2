"""What killed runs leave behind in a run's folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

# As ``write_json``, ``write_tensors``, ``save_image``, checkpoints, logs and figures name what they
# have not written whole.
IN_RUN = (".*.partial", "metrics.jsonl.partial", ".ldm-*.part")
IN_FOLDERS = (".*.partial", ".ldm-*.part")


def clear_leftovers(run: Path) -> None:
    """Remove unfinished files and checkpoints of runs that were killed.

    Only the process that holds the run's lock may call it. What cannot be removed stays.
    """
    for path in list(leftovers(run)):
        with contextlib.suppress(OSError):
            remove(path)


def leftovers(run: Path) -> Iterator[Path]:
    """Yield the unfinished files in a run's folder and those in it, and unfinished checkpoints."""
    for pattern in IN_RUN:
        yield from run.glob(pattern)
    for folder in run.glob("*/"):
        if not folder.is_symlink():
            for pattern in IN_FOLDERS:
                yield from folder.glob(pattern)
    yield from (run / "checkpoints").glob("[0-9]*.partial")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
