"""Train a U-Net on pixels: DDPM (Ho et al. 2020), improved (Nichol & Dhariwal 2021), ADM (2021)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.config import SchedulerConfig, UNetConfig
from ldm.errors import ArgumentError, DataError
from ldm.images import image_grid
from ldm.likelihood import Predict, bound_estimate, quantise
from ldm.pipeline import Defaults, Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.training.config import TrainConfig
from ldm.training.data import open_data
from ldm.training.figures import (
    draw_denoising,
    draw_noising,
    draw_through_time,
    evenly,
)
from ldm.training.objectives import OBJECTIVES, diffusion_loss, draw_times
from ldm.training.tables import choice, read_table, within
from ldm.unet import UNet

MOMENTS = 8  # of drawing, in the figure through time


@dataclass
class PixelOptions:
    """The table ``[options]``."""

    data: dict[str, Any] = field(default_factory=dict)  # see ldm/training/data/options.py
    scheduler: dict[str, Any] = field(default_factory=dict)  # as in scheduler_config.json
    defaults: dict[str, Any] = field(default_factory=dict)  # as in generation_config.json
    classes: bool = False  # whether the model is told the class
    label_dropout: float = within("[0, 1)", 0.1)  # share of labels made "no class", for guidance
    objective: str = choice(*OBJECTIVES)
    vlb_weight: float = within("[0, inf)", 0.001)  # λ of the hybrid objective
    min_snr_gamma: float | None = within("(0, inf)", None)
    samples: int = within("[1, inf)", 20)  # pictures drawn at each sampling
    held_out: int = within("[1, inf)", 64)  # pictures that the bound is measured on
    bound_calls: int = within("[2, inf)", 8)  # calls of the network for each of them
    figures: bool = True


class PixelRecipe:
    """Learns to denoise pictures, alone or given their class."""

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(PixelOptions, config.options, "options.")
        self.batch_size, self.step = config.batch_size, 0
        self.data = open_data(config.data, options.data)
        self.scheduler = DDPMScheduler(
            SchedulerConfig.from_dict(options.scheduler, "options.scheduler")
        )
        if options.classes and not self.data.classes:
            raise DataError(f"{config.data} has no labels; set options.classes = false")
        self.model = UNet(self.unet_config(config.model))
        # Start from the prediction 0, as Ho et al.'s code does.
        nn.init.zeros_(self.model.conv_out.weight)
        nn.init.zeros_(self.model.conv_out.bias)

    def unet_config(self, values: dict[str, Any]) -> UNetConfig:
        """The config's table ``[model]``, and what follows from the data and the objective.

        Raises ArgumentError where the table says that too.
        """
        example = self.data.pixels(self.data.draw(1, torch.Generator().manual_seed(0)))
        channels, side = example.shape[1], example.shape[-1]
        learned = self.scheduler.config.variance_type == "learned_range"
        follows = {
            "_class_name": "UNet2DModel",
            "sample_size": side,
            "in_channels": channels,
            "out_channels": 2 * channels if learned else channels,
            # The last one is "no class" (Ho & Salimans 2022, algorithm 1).
            "num_class_embeds": len(self.data.classes) + 1 if self.options.classes else None,
        }
        if twice := sorted(follows.keys() & values.keys()):
            raise ArgumentError(
                f"model.{twice[0]} follows from the data and the options ({follows[twice[0]]!r}); "
                "leave it out"
            )
        return UNetConfig.from_dict({**follows, **values}, "model")

    def prepare(self, accelerator: Accelerator) -> None:
        """Nothing to do."""

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        self.step = step + 1
        return self.example(self.batch_size, generator)

    def example(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        generator = generator or torch.Generator().manual_seed(0)
        indices = self.data.draw(count, generator)
        x0 = self.data.pixels(indices, generator=generator)
        batch = {
            "x0": x0 if self.options.objective == "simple" else quantise(x0),
            "noise": torch.randn(x0.shape, generator=generator),
            "t": draw_times(self.scheduler, count, generator),
        }
        if self.options.classes:
            dropped = torch.rand(count, generator=generator) < self.options.label_dropout
            none = torch.tensor(len(self.data.classes))
            batch["labels"] = torch.where(dropped, none, self.data.labels(indices))
        return batch

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x0, noise, t = batch["x0"], batch["noise"], batch["t"]
        x_t = self.scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        output = model(x_t, t, class_labels=batch.get("labels"))
        options = self.options
        return diffusion_loss(
            self.scheduler,
            output,
            x0,
            noise,
            t,
            options.objective,
            options.min_snr_gamma,
            options.vlb_weight,
        )

    def evaluate(self, model: nn.Module) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw every class in turn, always from the same seeds; the bound in bits/dim."""
        names = self.data.classes if self.options.classes else [""]
        prompts = [names[i % len(names)] for i in range(self.options.samples)]
        moments = []
        for progress in self.pipeline(model).stream(prompts, seed=0):
            kept = [1 + i for i in evenly(progress.steps, MOMENTS)]
            if progress.step in kept:
                moments.append((f"step {progress.step}", progress.latents[:MOMENTS].cpu()))
        self.moments = moments
        x0, predict = self.measured(model)
        bound = bound_estimate(
            self.scheduler,
            predict,
            x0,
            torch.Generator().manual_seed(0),
            self.options.bound_calls,
            self.scheduler.clip,
        )
        picture = image_grid(progress.output.images, columns=10)
        return picture, {"bits_per_dim": float(bound.mean())}

    def measured(self, model: nn.Module) -> tuple[Tensor, Predict]:
        """Held-out pictures, and the network as a function of (x_t, t) that knows their classes."""
        rows = self.data.held_out if len(self.data.held_out) else self.data.train
        rows = rows[:: max(1, len(rows) // self.options.held_out)][: self.options.held_out]
        device = next(model.parameters()).device
        x0 = self.data.pixels(rows).to(device)
        labels = self.data.labels(rows).to(device) if self.options.classes else None

        def predict(x: Tensor, t: Tensor) -> Tensor:
            given = None if labels is None else labels[: len(x)]
            return model(x.contiguous(memory_format=torch.channels_last), t, class_labels=given)

        return x0, predict

    def figures(self, model: nn.Module, folder: Path) -> None:
        """Noising, denoising, and the pictures of ``evaluate`` through time."""
        if not self.options.figures:
            return
        x0, predict = self.measured(model)
        if not (folder / "noising.png").exists():
            config = self.scheduler.config
            schedules = {
                name: DDPMScheduler(replace(config, beta_schedule=beta, trained_betas=None))
                for name, beta in (("linear", "linear"), ("cosine", "squaredcos_cap_v2"))
            }
            draw_noising(folder / "noising.png", x0[0].cpu(), schedules)
        draw_denoising(folder / "denoising.png", self.scheduler, predict, x0[:16])
        draw_through_time(folder / f"{self.step:08d}.png", self.moments)

    def save(self, model: nn.Module, folder: Path) -> None:
        """A whole pipeline: ``ldm-generate --model`` takes the run's folder."""
        self.pipeline(model).save_pretrained(folder)

    def pipeline(self, unet: nn.Module) -> Pipeline:
        names = self.data.classes if self.options.classes else []
        return Pipeline(
            None,
            None,
            None,
            unet,
            self.scheduler,
            Defaults.from_dict(self.options.defaults, "options.defaults"),
            id2label={str(i): name for i, name in enumerate(names)} or None,
        )
