"""A fine-tuning as a process of several: `fine_tuning.py RUN KEY=JSON…`, perhaps `sharded=true`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import DistributedType, PartialState
from torch.distributed.tensor import DTensor

from ldm.training.config import TrainConfig
from ldm.training.loop import train_steps
from ldm.training.recipes import build_recipe


def tuning_config(run: Path, **settings: Any) -> TrainConfig:
    """Six steps without dropout, of which every one is logged."""
    values: dict[str, Any] = {
        "output": str(run),
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup": 0,
        "decay_from": 1.0,
        "mixed_precision": "no",
        "log_every": 1,
        "sample_every": 1000,
        "checkpoint_minutes": 1e9,
        "ema_decay": 0.9,
    }
    return TrainConfig(**(values | settings))


def tune(config: TrainConfig, sharded: bool = False) -> None:
    """Train; look at whether all that is trained is spread over processes."""
    torch.manual_seed(config.seed)
    recipe = build_recipe(config)
    for _ in train_steps(config, recipe):
        spread = [isinstance(value, DTensor) for value in recipe.model.parameters()]
        assert all(spread) if sharded else not any(spread)


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = {key: json.loads(value) for key, value in (one.split("=", 1) for one in sys.argv[2:])}
    shards = given.pop("sharded", False)
    if shards:  # without a GPU, which accelerate itself refuses: see toy_sharded.py
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    tune(tuning_config(Path(sys.argv[1]), **given), shards)
