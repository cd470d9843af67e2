"""The state of a run on disk, written whole or not at all: a kill never harms the last good one.

``run/checkpoints/<step>/`` holds ``model``, ``ema`` and ``optimizer`` as safetensors, always of
whole tensors by the model's names, so that a run may go on over more processes or fewer, sharded
or not; and ``state.json``. Nothing else is needed: what is random depends on (seed, step) alone.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.checkpoints.tensors import write_tensors
from ldm.config import write_json
from ldm.errors import CheckpointError, TrainingError
from ldm.training.damage import check_file, damage, read_state, way_out
from ldm.training.ema import EMA
from ldm.training.leftovers import remove
from ldm.training.metrics import Metrics
from ldm.training.optimizer_state import (
    group_state,
    load_group_state,
    load_state_of,
    saved_state,
)
from ldm.training.sharding import collect, spread_like

KEEP = 2  # the newest is the one to resume; the one before is for the unlucky


@dataclass
class Learner:
    """All that training changes: the weights, their average, the optimizer's state.

    And the figures since the last row of the log, so that the next row averages all its steps.
    """

    model: nn.Module
    ema: EMA[nn.Module]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None  # of fp16
    metrics: Metrics = field(default_factory=Metrics)
    since_row: float = 0.0  # seconds since the last row

    @torch.no_grad()
    def tensors(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """Return each file's tensors where a process ``keep``s them. Where sharded, all call it."""
        moments = {
            f"{entry}/{name}": value
            for name, parameter in self.model.named_parameters()
            for entry, value in saved_state(self.optimizer, parameter).items()
        }
        files = {"model": self.model.state_dict(), "ema": self.ema.averages, "optimizer": moments}
        return {name: collect(values, keep) for name, values in files.items()}

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Load the files of ``tensors``.

        Raises CheckpointError, naming the file, for one that is damaged or of another model.
        """
        files: dict[str, dict[str, Tensor]]
        files = {"model": self.model.state_dict(), "ema": self.ema.averages}
        for file, own in files.items():
            path = folder / f"{file}.safetensors"
            with damage(path):
                found = read_part(path)
                if file == "ema" and not own:  # runs without an average once had a copy
                    continue
                check_names(own, found)
                for name, value in own.items():
                    value.copy_(spread_like(value, found[name]))
        path = folder / "optimizer.safetensors"
        with damage(path):
            self.load_moments(read_part(path))

    def load_moments(self, found: dict[str, Tensor]) -> None:
        """Load the optimizer's state. Raises ValueError for that of another model."""
        parameters = dict(self.model.named_parameters())
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        states: dict[str, dict[str, Tensor]] = {}
        for key, value in found.items():
            entry, _, name = key.partition("/")
            if name not in parameters:
                raise ValueError(f"{key} is not of this model")
            states.setdefault(name, {})[entry] = value
        for name, state in states.items():
            parameter = parameters[name]
            try:
                load_state_of(self.optimizer, parameter, groups[id(parameter)], state)
            except ValueError as error:
                raise ValueError(f"of {name}: {error}") from None


def read_part(path: Path) -> dict[str, Tensor]:
    """Read a file of a checkpoint. Raises an error for a damaged one, or one with other numbers."""
    check_file(path)
    found = load_file(path)
    for name, value in found.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} is not finite")
    return found


def check_names(own: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raise ValueError, naming the first, for tensors that are missing, too many or misshapen."""
    for name in sorted(own.keys() ^ found.keys()):
        raise ValueError(f"{name} is {'missing' if name in own else 'not of this model'}")
    for name, value in own.items():
        if value.shape != found[name].shape:
            raise ValueError(f"{name} is {tuple(found[name].shape)}, here {tuple(value.shape)}")
        if value.dtype != found[name].dtype:
            raise ValueError(f"{name} is {found[name].dtype}, here {value.dtype}")


def save_state(run: Path, step: int, seconds: float, learner: Learner, writes: bool = True) -> None:
    """Write ``run/checkpoints/<step>``; only the process that ``writes`` does.

    Raises TrainingError where the disk is full.
    """
    tensors = learner.tensors(keep=writes)
    if not writes:
        return
    folder = run / "checkpoints" / f"{step:08d}"
    if folder.exists():
        return  # the same state: a step has one outcome
    partial = folder.with_suffix(".partial")
    metrics = learner.metrics.state(learner.since_row)
    state: dict[str, Any] = {"step": step, "seconds": seconds, "metrics": metrics}
    if learner.scaler is not None:
        state["scaler"] = learner.scaler.state_dict()
    if of_groups := group_state(learner.optimizer):
        state["optimizer"] = of_groups
    try:
        for left in folder.parent.glob("*.partial"):  # by a run that was killed
            remove(left)
        partial.mkdir(parents=True)
        for name, values in tensors.items():
            write_tensors(values, partial / f"{name}.safetensors")
        write_json(partial / "state.json", state)
        for path in (*partial.iterdir(), partial):
            flush(path)
        partial.rename(folder)
        flush(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)  # or the disk would stay full
        raise unwritten(run, step, error) from error
    for old in checkpoints(run)[:-KEEP]:
        gone = old.with_suffix(".partial")  # one half deleted must not look complete
        old.rename(gone)
        shutil.rmtree(gone)


def check_finite(model: nn.Module, step: int) -> None:
    """Raise TrainingError for weights that must not be saved.

    An average is not finite as soon as a weight is not, so checking the averages is enough.
    """
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise TrainingError(
                f"{name} is not finite after step {step} and is not saved; lower learning_rate, "
                "then run the same command to go on from the last checkpoint"
            )


def flush(path: Path) -> None:
    """Wait until the disk has a file, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritten(run: Path, step: int, error: Exception) -> TrainingError:
    """Build the error for a step whose result cannot be written."""
    found = checkpoints(run)
    good = f"{found[-1]} is complete" if found else "there is no earlier one"
    return TrainingError(
        f"step {step} cannot be written to {run} ({error}); {good}. "
        "Free some space, then run the same command to go on from there"
    )


def checkpoints(run: Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first."""
    found = [
        path
        for path in (run / "checkpoints").glob("*")
        if path.name.isascii() and path.name.isdigit() and path.is_dir()
    ]
    return sorted(found, key=lambda path: int(path.name))


def load_state(run: Path, learner: Learner) -> tuple[int, float]:
    """Resume from the newest checkpoint: (steps done, seconds spent), or (0, 0.0) for a new run.

    Raises CheckpointError when the checkpoint is of another model or broken; it names the file, and
    what still works.
    """
    found = checkpoints(run)
    if not found:
        return 0, 0.0
    folder = found[-1]
    try:
        state = read_state(folder)
        learner.load(folder)
        with damage(folder / "state.json"):
            if learner.scaler is not None and "scaler" in state:
                learner.scaler.load_state_dict(state["scaler"])
            load_group_state(learner.optimizer, state.get("optimizer", {}))
            if "metrics" in state:
                learner.since_row = learner.metrics.load_state(state["metrics"])
    except CheckpointError as error:
        own = dict(learner.model.state_dict())
        raise CheckpointError(f"{error}; {way_out(run, found, own)}") from error
    return state["step"], state["seconds"]
