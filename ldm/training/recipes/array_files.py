"""Arrays kept in .npy files of a run folder: made with their disk space, checked, read by parts."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ldm.errors import CheckpointError, DataError, TrainingError
from ldm.training.damage import read_object
from ldm.training.data.arrays import map_array
from ldm.training.leftovers import remove


class Layout(NamedTuple):
    """What a file holds."""

    dtype: type[np.generic]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return the bytes of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def create_arrays(folder: Path, layouts: Mapping[str, Layout], what: str) -> None:
    """Make files of zeros by name in a folder, each with all the disk space that it needs.

    So that a full disk is noticed before anything is computed, and not by a signal while a mapped
    file is written. what: they hold, for messages.
    Raises TrainingError, naming the folder and the bytes, where they do not fit; none stays then.
    """
    needed = sum(layout.nbytes for layout in layouts.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in layouts:
            remove(folder / name)  # whatever stands there
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise TrainingError(
                f"{what} need {needed:,} bytes in {folder}, but its disk has {free:,} free; free "
                "some space, or set output to a folder on another disk"
            )
        for name, (dtype, shape) in layouts.items():
            np.lib.format.open_memmap(folder / name, "w+", dtype, shape).flush()
            take_space(folder / name)
    except OSError as error:
        for name in layouts:
            with contextlib.suppress(OSError):
                remove(folder / name)
        raise TrainingError(
            f"{what} need {needed:,} bytes and cannot be written to {folder} "
            f"({error.strerror or error}); free some space, or set output to another folder"
        ) from error


def take_space(path: Path) -> None:
    """Take the disk space of a file of zeros, which else has none until it is written."""
    if hasattr(os, "posix_fallocate"):  # Windows and macOS lack it
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def open_array(path: Path) -> np.memmap:
    """Map a file that ``create_arrays`` made into memory, to write to it."""
    found = np.lib.format.open_memmap(path, "r+")
    assert isinstance(found, np.memmap)
    return found


def check_array(path: Path, layout: Layout) -> None:
    """Raise DataError for a file that does not hold what it should."""
    found = map_array(path)
    if found.dtype != layout.dtype or found.shape != layout.shape:
        raise DataError(
            f"{path} holds {found.dtype} of shape {found.shape}, not "
            f"{np.dtype(layout.dtype)} of {layout.shape}"
        )


def kept(path: Path) -> dict[str, Any]:
    """Read what files belong to; {} without such a note, or with a damaged one."""
    try:
        return read_object(path)
    except CheckpointError:
        return {}


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return the keys under which two notes of what files belong to differ."""
    return [key for key in now if before.get(key) != now[key]]


def fingerprint(module: torch.nn.Module) -> float:
    """Compute a number that differs between different weights."""
    return float(sum(tensor.double().abs().sum() for tensor in module.state_dict().values()))
