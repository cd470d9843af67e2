"""Damaged runs: which file it is, what still works, and how to go on."""

from __future__ import annotations

import contextlib
import shlex
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoints.header import read_header
from ldm.errors import CheckpointError, LDMError
from ldm.training.foreign import kind_of_file, parse_json, read_file

MOST_BYTES = 1 << 24  # of config.json and state.json
PARTS = ("model", "ema", "optimizer")


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Name a file in the error for whatever goes wrong while it is read: a CheckpointError."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except Exception as error:  # whatever the parsers raise: the remedy is the same
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
        reason = reason.splitlines()[0] if reason else type(error).__name__
        raise CheckpointError(f"{path} does not fit this run or is damaged ({reason})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError naming the file."""
    with damage(path):
        values = parse_json(read_file(path, MOST_BYTES))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}; expected a JSON object")
        return values


def read_state(folder: Path) -> dict[str, Any]:
    """Read the ``state.json`` of a checkpoint. Raises CheckpointError naming the file."""
    path = folder / "state.json"
    state = read_object(path)
    with damage(path):
        step, seconds = state.get("step"), state.get("seconds")
        if type(step) is not int or step != int(folder.name):
            raise ValueError(f"step is {step!r:.40}, in the folder of step {int(folder.name)}")
        if type(seconds) not in (int, float) or not 0 <= float(seconds) < 1e15:  # type: ignore[arg-type]
            raise ValueError(f"seconds is {seconds!r:.40}")
    return state


def check_file(path: Path) -> None:
    """Raise an error for what is no regular, whole safetensors file."""
    if kind := kind_of_file(path):
        raise ValueError(f"it is {kind}")
    read_header(path)


def is_whole(folder: Path, own: dict[str, Tensor]) -> bool:
    """Whether a checkpoint can be resumed from, as far as its headers say.

    own: the model's tensors.
    """
    try:
        read_state(folder)
        for part in PARTS:
            check_file(folder / f"{part}.safetensors")
        header = read_header(folder / "model.safetensors").tensors
    except (LDMError, OSError, ValueError):
        return False
    return {name: info.shape for name, info in header.items()} == {
        name: tuple(value.shape) for name, value in own.items()
    }


def way_out(run: Path, found: Sequence[Path], own: dict[str, Tensor]) -> str:
    """Say how to go on if the last of the checkpoints ``found`` cannot be resumed from."""
    good = next((i for i in reversed(range(len(found) - 1)) if is_whole(found[i], own)), None)
    if good is not None:
        gone = " ".join(shlex.quote(str(folder)) for folder in found[good + 1 :])
        return (
            f"{found[good]} is whole: to go on from step {int(found[good].name)}, remove that "
            f"folder (rm -r {gone}), then run the same command"
        )
    return (
        "no other checkpoint is whole: remove that folder to begin anew, or give another output. "
        f"{drawable(run)}"
    )


def drawable(run: Path) -> str:
    """Say what of the saved, averaged model is whole."""
    folder = shlex.quote(str(run))
    parts = [path for path in sorted(run.glob("*/*.safetensors")) if _is_whole_file(path)]
    if (run / "model_index.json").is_file() and parts:
        return f"The averaged model is there: ldm generate --model {folder}"
    if parts:
        return f"The averaged weights are there, to begin with: --set start={parts[0].parent}"
    return "No averaged model is there"


def _is_whole_file(path: Path) -> bool:
    try:
        check_file(path)
    except (LDMError, OSError, ValueError):
        return False
    return True


def read_settings(run: Path, accept_changes: bool) -> dict[str, Any] | None:
    """Read the ``config.json`` of a run; None, with a warning, for a damaged one that may be so.

    Raises CheckpointError for a damaged one, unless the caller accepts changes.
    """
    try:
        return read_object(run / "config.json")
    except CheckpointError as error:
        if not accept_changes:
            raise CheckpointError(
                f"{error}; the settings of the run are unknown. Give --accept-changes to go on "
                "with those of this command"
            ) from None
        warnings.warn(f"{error}; the run goes on with the settings given", stacklevel=3)
        return None
