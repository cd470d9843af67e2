"""The state of a run on disk, written whole or not at all: a kill never harms the last good one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ldm.config import read_json, write_json
from ldm.errors import CheckpointError
from ldm.training.ema import EMA

KEEP = 2  # the newest is the one to resume; the one before is for the unlucky


def save_state(
    run: Path,
    step: int,
    seconds: float,
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write ``run/checkpoints/<step>``: weights, their average, the optimizer, the counters."""
    folder = run / "checkpoints" / f"{step:08d}"
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, module in (("model", model), ("ema", ema.model)):
        tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
        save_file(tensors, partial / f"{name}.safetensors")
    torch.save(optimizer.state_dict(), partial / "optimizer.pt")
    write_json(partial / "state.json", {"step": step, "seconds": seconds})
    os.sync()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    for old in checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("*") if path.name.isdigit())


def load_state(
    run: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Resume from the newest checkpoint: (steps done, seconds spent), or (0, 0.0) for a new run.

    Raises CheckpointError when the checkpoint is of another model or broken.
    """
    found = checkpoints(run)
    if not found:
        return 0, 0.0
    folder = found[-1]
    try:
        state = read_json(folder / "state.json")
        model.load_state_dict(load_file(folder / "model.safetensors"))
        ema.model.load_state_dict(load_file(folder / "ema.safetensors"))
        optimizer.load_state_dict(
            torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        )
    except Exception as error:  # whatever the parsers raise: the remedy is the same
        raise CheckpointError(
            f"{folder} does not fit this run ({error}); "
            "remove that folder to go on from the one before, or give another output"
        ) from error
    return state["step"], state["seconds"]
