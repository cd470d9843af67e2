"""Distil guidance into one pass of the network for each step (Meng et al. 2023, section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldm.config.settings import read_table
from ldm.errors import ArgumentError
from ldm.training.config import TrainConfig
from ldm.training.distillation import distance
from ldm.training.finetuning.trained import Trained
from ldm.training.objectives import diffusion_weight
from ldm.training.recipes.distillation import DistillationOptions, DistillationRecipe


class GuidanceDistillationRecipe(DistillationRecipe):
    """Learns to predict what the base predicts with guidance: ‖ŷ(x, t, c, w) − y_w(x, t, c)‖².

    Raises as ``DistillationRecipe`` does, and ArgumentError for several scales in a LoRA, which
    reads none.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(DistillationOptions, config.options, "options.")
        if options.train == "lora" and options.w_min != options.w_max:
            raise ArgumentError(
                f"a LoRA learns one guidance scale, but options.w_min is {options.w_min} and "
                f'options.w_max {options.w_max}; give both one value, or options.train = "full"'
            )
        super().__init__(config, options, "a model without guidance")

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x, t, inputs = self.x_t(batch), batch["t"], self.inputs(batch)
        taught = self.teach(x, t, inputs, batch["w"])
        error = distance(model(x, t, inputs), taught, "l2", mask=batch.get("mask"))
        weight = diffusion_weight(self.scheduler, t, self.options.min_snr_gamma)
        weight = weight * batch.get("weight", 1.0)
        return (weight * error).mean(), {"mse": error.detach().mean()}

    def shown(self) -> dict[str, Any]:
        given = super().shown()
        if self.options.train == "lora" and self.options.guidance_scale is None:
            given["guidance_scale"] = 1.0
        return given

    def save(self, model: Trained, folder: Path) -> None:
        """Write the LoRA, or the whole model."""
        self.save_student(model, folder, "guidance scale 1")
