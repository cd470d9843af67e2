"""Train a U-Net on pixels: DDPM (Ho et al. 2020), improved (Nichol & Dhariwal 2021), ADM (2021)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.config import SchedulerConfig, UNetConfig
from ldm.config.generation import Defaults
from ldm.config.settings import choice, read_table, within
from ldm.errors import ArgumentError
from ldm.images import image_grid
from ldm.likelihood import Predict, bound_estimate, quantise
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.training.batches import check_classes, held_out_batch, noised_batch
from ldm.training.config import TrainConfig
from ldm.training.data import open_data
from ldm.training.figures import (
    draw_denoising,
    draw_noising,
    draw_through_time,
    evenly,
    matplotlib_available,
)
from ldm.training.objectives import (
    OBJECTIVES,
    check_objective,
    check_zero_snr,
    diffusion_loss,
)
from ldm.training.recipes.base import Recipe
from ldm.training.warm_start import new_unet
from ldm.unet import UNet

MOMENTS, ROWS = 8, 10  # of the figure of drawing through time, at most
FEW = 16  # held-out pictures whose error against t is drawn


@dataclass
class PixelOptions:
    """The table ``[options]``."""

    data: dict[str, Any] = field(default_factory=dict)  # see ldm/training/data/options.py
    scheduler: dict[str, Any] = field(default_factory=dict)  # as in scheduler_config.json
    defaults: dict[str, Any] = field(default_factory=dict)  # as in generation_config.json
    classes: bool = False  # whether the model is conditioned on the class
    label_dropout: float = within("[0, 1)", 0.1)  # share of labels made "no class", for guidance
    objective: str = choice(*OBJECTIVES)
    vlb_weight: float = within("[0, inf)", 0.001)  # λ of the hybrid objective
    min_snr_gamma: float | None = within("(0, inf)", None)
    samples: int = within("[1, inf)", 20)  # pictures drawn at each sampling
    held_out: int = within("[1, inf)", 64)  # pictures that the bound is measured on
    bound_calls: int = within("[2, inf)", 8)  # calls of the network for each of them
    figures: bool = True


class PixelRecipe(Recipe[UNet]):
    """Learns to denoise pictures, alone or given their class."""

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(PixelOptions, config.options, "options.")
        self.batch_size, self.step = config.batch_size, 0
        self.data = open_data(config.data, options.data)
        self.scheduler = DDPMScheduler(
            SchedulerConfig.from_dict(options.scheduler, "options.scheduler")
        )
        check_objective(self.scheduler, options.objective)
        check_zero_snr(self.scheduler, options.min_snr_gamma)
        mean = self.scheduler.config.prediction_type == "mean"
        if mean and config.mixed_precision != "no":
            raise ArgumentError(
                f"mixed_precision is {config.mixed_precision!r}, which rounds away what "
                "prediction_type 'mean' says beyond x_t; set it to 'no'"
            )
        self.classes: list[str] = []  # that the model is conditioned on
        if options.classes:
            self.classes = check_classes(self.data, config.data, "which options.classes needs")
        self.model = new_unet(self.unet_config(config.model), config.start)

    def unet_config(self, values: dict[str, Any]) -> UNetConfig:
        """Return the config's table ``[model]``, with what follows from the data and the objective.

        Raises ArgumentError for a table that sets those, too.
        """
        pixels = self.data.batch(0, 1, torch.Generator().manual_seed(0)).pixels
        channels, side = pixels.shape[1], pixels.shape[-1]
        dropout = self.options.label_dropout
        learned = self.scheduler.config.variance_type == "learned_range"
        follows = {
            "_class_name": "UNet2DModel",
            "sample_size": side,
            "in_channels": channels,
            "out_channels": 2 * channels if learned else channels,
            # The last one is "no class", where that is learnt (Ho & Salimans 2022, algorithm 1).
            "num_class_embeds": len(self.classes) + (dropout > 0) if self.classes else None,
        }
        if twice := sorted(follows.keys() & values.keys()):
            raise ArgumentError(
                f"model.{twice[0]} follows from the data and the options ({follows[twice[0]]!r}); "
                "leave it out"
            )
        return UNetConfig.from_dict({**follows, **values}, "model")

    def prepare(self, accelerator: Accelerator) -> None:
        """Choose the held-out pictures to measure with."""
        self.shown = held_out_batch(self.data, self.options.held_out)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        self.step = step + 1
        return self.noised(step, self.batch_size, generator)

    def example(self, count: int) -> dict[str, Tensor]:
        return self.noised(0, count, torch.Generator().manual_seed(0))

    def noised(self, step: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = noised_batch(self.data, self.scheduler, step, count, generator)
        if self.options.objective != "simple":
            batch["x0"] = quantise(batch["x0"])  # the bound is about 8-bit pictures
        labels = batch.pop("labels", None)
        if self.classes:
            assert labels is not None  # see check_classes
            dropped = torch.rand(count, generator=generator) < self.options.label_dropout
            batch["labels"] = torch.where(dropped, len(self.classes), labels)
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

    def evaluate(self, model: UNet) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw every class in turn, always from the same seeds; the bound on held-out pictures."""
        names = self.classes or [""]
        prompts = [names[i % len(names)] for i in range(self.options.samples)]
        self.moments = []
        for progress in self.pipeline(model).stream(prompts, seed=0):
            if progress.step - 1 in evenly(progress.steps, MOMENTS):
                moment = progress.latents[:ROWS].cpu()
                self.moments.append((f"step {progress.step}", moment))
        metrics = {}
        if self.shown is not None:
            metrics["bits_per_dim"] = float(
                bound_estimate(
                    self.scheduler,
                    self.predict(model),
                    self.shown.pixels,
                    torch.Generator().manual_seed(0),
                    self.options.bound_calls,
                    self.scheduler.clip,
                ).mean()
            )
        assert progress.output is not None  # of the last step
        images = cast("list[Image.Image]", progress.output.images)
        return image_grid(images, columns=10), metrics

    def predict(self, model: UNet) -> Predict:
        """Return the model as a function of (x_t, t), x_t of the first held-out pictures."""
        device, shown = next(model.parameters()).device, self.shown
        assert shown is not None

        def predict(x: Tensor, t: Tensor) -> Tensor:
            labels = None
            if self.classes and shown.labels is not None:
                labels = shown.labels[: len(x)].to(device)
            x = x.to(device, memory_format=torch.channels_last)
            return model(x, t.to(device), class_labels=labels).cpu()

        return predict

    def figures(self, model: UNet, folder: Path) -> None:
        """Noising, denoising, and the pictures of ``evaluate`` through time."""
        if not self.options.figures or not matplotlib_available("figures"):
            return
        draw_through_time(folder / f"{self.step:08d}.png", self.moments)
        if self.shown is None:
            return
        pixels = self.shown.pixels[:FEW]
        draw_denoising(folder / "denoising.png", self.scheduler, self.predict(model), pixels)
        if not (folder / "noising.png").exists():
            schedules = {
                name: DDPMScheduler(
                    replace(self.scheduler.config, beta_schedule=beta, trained_betas=None)
                )
                for name, beta in (("linear", "linear"), ("cosine", "squaredcos_cap_v2"))
            }
            draw_noising(folder / "noising.png", pixels[0], schedules)

    def save(self, model: UNet, folder: Path) -> None:
        """Write a whole pipeline: ``ldm-generate --model`` takes the run's folder."""
        self.pipeline(model).save_pretrained(folder)

    def pipeline(self, unet: UNet) -> Pipeline:
        return Pipeline(
            None,
            None,
            None,
            unet,
            self.scheduler,
            Defaults.from_dict(self.options.defaults, "options.defaults"),
            id2label={str(i): name for i, name in enumerate(self.classes)} or None,
        )
