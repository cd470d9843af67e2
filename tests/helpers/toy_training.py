"""A training that takes no time: a small network with dropout that learns a fixed map.

As a script, `toy_training.py OUTPUT KEY=JSON…`, it is a process that a test can kill or launch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.training.config import TrainConfig
from ldm.training.loop import train_steps
from ldm.training.recipes.base import Recipe

WIDTH = 24


class Toy(Recipe):
    """Learns x → sin(3x) with dropout; batches are drawn anew at each step."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        dropout = nn.Dropout(config.options.get("dropout", 0.2))
        self.model = nn.Sequential(
            *(nn.Linear(8, WIDTH), nn.SiLU(), dropout, nn.Linear(WIDTH, WIDTH)),
            *(nn.SiLU(), nn.Linear(WIDTH, 8)),
        )
        self.drawn: list[Path] = []

    def examples(self) -> tuple[int, int]:
        return 100, 100

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(self.config.batch_size, 8, generator=generator)
        if step == self.config.options.get("nan_at"):
            x[0, 0] = torch.nan
        return {"x": x, "y": torch.sin(3 * x)}

    def example(self, count: int) -> dict[str, Tensor]:
        return {"x": torch.zeros(count, 8), "y": torch.zeros(count, 8)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        error = (model(batch["x"]).float() - batch["y"]).square()
        return error.mean(), {"worst_row": error.mean(1).mean()}

    def evaluate(self, model: nn.Module) -> tuple[Image.Image | None, dict[str, float]]:
        x = torch.linspace(-1, 1, 64).reshape(8, 8)
        error = float((model(x) - torch.sin(3 * x)).square().mean())
        return Image.new("L", (4, 4)), {"held_out": error}

    def figures(self, model: nn.Module, folder: Path) -> None:
        self.drawn.append(folder)

    def save(self, model: nn.Module, folder: Path) -> None:
        save_file(model.state_dict(), folder / "toy.safetensors")


def toy_config(output: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "recipe": "toy",
        "data": "",
        "output": str(output),
        "steps": 8,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "warmup": 2,
        "mixed_precision": "no",
        "log_every": 1,
        "checkpoint_minutes": 1e9,
    }
    return TrainConfig(**(values | changes))


def toy_run(config: TrainConfig, **arguments: Any) -> list[float]:
    """Train; returns the losses."""
    torch.manual_seed(config.seed)
    return [state.metrics.get("loss") for state in train_steps(config, Toy(config), **arguments)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = dict(one.split("=", 1) for one in sys.argv[2:])
    toy_run(toy_config(Path(sys.argv[1]), **{key: json.loads(v) for key, v in settings.items()}))
