"""Train the classifier that guides a pixel model: it reads noised pictures (Dhariwal & Nichol 2021,
section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.folder import save_component
from ldm.classes.classifier import Classifier
from ldm.config import ClassifierConfig, SchedulerConfig, UNetConfig, read_json, write_json
from ldm.config.settings import read_table, within
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu
from ldm.loading.folder import save_classifier
from ldm.scheduler import DDPMScheduler
from ldm.training.batches import check_classes, held_out_batch, noised_batch
from ldm.training.config import TrainConfig
from ldm.training.data import open_data
from ldm.training.figures import evenly
from ldm.training.recipes.base import Recipe
from ldm.training.warm_start import begin_with

LEVELS = 5  # at which its accuracy is measured


@dataclass
class ClassifierOptions:
    """The table ``[options]``."""

    guides: str  # folder of the pixel model's run, which gets it as its part "classifier"
    data: dict[str, Any] = field(default_factory=dict)  # as in that run's config
    held_out: int = within("[1, inf)", 256)  # pictures that the accuracy is measured on


class ClassifierRecipe(Recipe[Classifier]):
    """Learns which class a noised picture x_t is of, given t, under the noise of the model."""

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(ClassifierOptions, config.options, "options.")
        self.batch_size, self.guides = config.batch_size, Path(options.guides)
        unet = UNetConfig.from_file(self.guides / "unet" / "config.json")
        self.scheduler = DDPMScheduler(
            SchedulerConfig.from_file(self.guides / "scheduler" / "scheduler_config.json")
        )
        self.data = open_data(config.data, options.data)
        classes = check_classes(self.data, config.data, "of which a classifier learns")
        follows = {
            "sample_size": unet.sample_size,
            "in_channels": unet.in_channels,
            "num_classes": len(classes),
        }
        pixels = self.example(1)["x0"]
        if pixels.shape[1:] != (unet.in_channels, unet.sample_size, unet.sample_size):
            raise ArgumentError(
                f"options.data gives pictures of (channels, height, width) "
                f"{tuple(pixels.shape[1:])}, but {self.guides} draws {unet.in_channels} channels "
                f"and {unet.sample_size} px; give the options.data of its config"
            )
        self.model = adapt_to_cpu(
            Classifier(ClassifierConfig.from_dict({**follows, **config.model}, "model"))
        )
        begin_with(self.model, config.start)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        return noised_batch(self.data, self.scheduler, step, self.batch_size, generator)

    def example(self, count: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return noised_batch(self.data, self.scheduler, 0, count, generator)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x_t = self.scheduler.add_noise(batch["x0"], batch["noise"], batch["t"])
        logits = model(x_t.contiguous(memory_format=torch.channels_last), batch["t"]).float()
        right = (logits.argmax(1) == batch["labels"]).float()
        return F.cross_entropy(logits, batch["labels"]), {"accuracy": right.mean()}

    def evaluate(self, model: Classifier) -> tuple[Image.Image | None, dict[str, float]]:
        """Return the share of held-out pictures classified correctly, by noise level."""
        rows = held_out_batch(self.data, self.options.held_out)
        if rows is None:
            return None, {}
        assert rows.labels is not None  # see check_classes
        device = next(model.parameters()).device
        x0, labels = rows.pixels.to(device), rows.labels.to(device)
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(device)
        accuracy = {}
        for t in evenly(len(self.scheduler.ratios), LEVELS):
            times = torch.full((len(x0),), t, device=device)
            x_t = self.scheduler.add_noise(x0, noise, times)
            parts = zip(x_t.split(64), times.split(64), strict=True)
            read = torch.cat([model(*part).argmax(1) for part in parts])
            accuracy[f"accuracy_t{t}"] = float((read == labels).float().mean())
        return None, accuracy

    def save(self, model: Classifier, folder: Path) -> None:
        """Into the run's folder, and as a part of the model that it guides."""
        save_component(model, folder / "classifier")
        index = read_json(self.guides / "model_index.json")
        save_classifier(model, self.guides, None, index)
        write_json(self.guides / "model_index.json", index)
