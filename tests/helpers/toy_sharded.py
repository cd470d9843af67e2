"""`toy_training.py` under FSDP2 on processes without a GPU, which accelerate itself refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate.state import DistributedType, PartialState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ldm.training.loop import train_steps
from tests.helpers.toy_training import Toy, toy_config


def main() -> None:
    """Train, looking at how the weights are spread."""
    torch.set_num_threads(1)
    PartialState(cpu=True)  # gloo
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    settings = dict(one.split("=", 1) for one in sys.argv[2:])
    config = toy_config(Path(sys.argv[1]), **{key: json.loads(v) for key, v in settings.items()})
    recipe = Toy(config)
    torch.manual_seed(config.seed)
    for _ in train_steps(config, recipe):
        parameters = list(recipe.model.parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters)
        kept = sum(parameter.to_local().numel() for parameter in parameters)
        assert kept == sum(parameter.numel() for parameter in parameters) // 2
        # The middle layer is gathered on its own, as the size in the config says.
        assert [isinstance(part, FSDPModule) for part in recipe.model] == [0, 0, 0, 1, 0, 0]


if __name__ == "__main__":
    main()
