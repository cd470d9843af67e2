"""What the recipes share that learn from the model itself, guided, as their teacher."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.config import UNetConfig
from ldm.config.generation import Defaults
from ldm.config.settings import choice, within
from ldm.errors import ArgumentError, TrainingError
from ldm.fast import adapt_to_cpu
from ldm.pipeline import Pipeline
from ldm.training.checkpointing import checkpoint_blocks
from ldm.training.config import TrainConfig
from ldm.training.distillation import guide
from ldm.training.finetuning.few_steps import SCHEDULERS
from ldm.training.finetuning.lora_start import begin_with_lora
from ldm.training.finetuning.texts import text_states
from ldm.training.finetuning.trained import Trained, adapters_of
from ldm.training.recipes.cached_latents import Drawn
from ldm.training.recipes.finetuning import FineTuningOptions, FineTuningRecipe
from ldm.training.recipes.lora import DTYPES, LoraSaving, check_saving, described, save_lora
from ldm.training.sharding import is_sharded
from ldm.unet import UNet


@dataclass(kw_only=True)
class DistillationOptions(FineTuningOptions, LoraSaving):
    """What the tables ``[options]`` of these recipes share."""

    # "lora": adapters, which make any finetune of the base as fast. "full": the whole U-Net, which
    # also reads the guidance scale, so that it can be chosen when drawing.
    train: str = choice("lora", "full")
    # The teacher is guided with w = guidance_scale − 1, drawn evenly between these.
    w_min: float = within("[0, inf)", 3.0)
    w_max: float = within("[0, inf)", 15.0)
    time_cond_proj_dim: int = within("[4, 65536]", 256)  # width of w's embedding in a whole U-Net
    caption_dropout: float = within("[0, 1]", 0.0)  # the teacher knows already what "" is


class DistillationRecipe(FineTuningRecipe):
    """Learns with a U-Net that imitates what its frozen base predicts with guidance.

    Attributes:
        teacher: the base's U-Net: of "lora" the very network that has the adapters.
        averaged: the moving average of the model.
    """

    averaged: Trained

    def __init__(self, config: TrainConfig, options: DistillationOptions, what: str) -> None:
        """Load the base, and make the student. Raises as ``LoraRecipe`` does."""
        self.distilled = options
        check_saving(options)
        if options.w_min > options.w_max:
            raise ArgumentError(
                f"options.w_min is {options.w_min}, but options.w_max {options.w_max}; exchange "
                "them, or give both the same value"
            )
        if options.class_prompt is not None or options.data.get("mask"):
            name = "data.mask" if options.class_prompt is None else "class_prompt"
            raise ArgumentError(
                f"options.{name} weighs the error of pictures, but a student imitates its teacher, "
                "whatever they show; leave it out"
            )
        super().__init__(config, options, what)
        if config.model:
            raise ArgumentError("[model] has settings, but these are of [options] here")
        if config.start and options.train == "full":
            raise ArgumentError("start is given, but a whole student begins as options.base")
        self.teacher = self.pipe.unet
        if self.pipe.scheduler.config.sampler_class in SCHEDULERS:
            warnings.warn(
                f"{options.base} draws in few steps already, as its scheduler says; a distillation "
                "begins with a model of many steps",
                stacklevel=3,
            )
        if options.train == "lora":
            self.model = adapters_of(self.pipe, options, False, options.clip_skip)
            begin_with_lora(self.model, config.start)
        else:
            student = with_guidance_embedding(self.teacher, options.time_cond_proj_dim)
            if options.gradient_checkpointing:
                checkpoint_blocks(student)
            pipe = Pipeline(**self.pipe.parts | self.saved_parts() | {"unet": student})
            self.model = Trained(pipe, {"unet": student}, options.clip_skip)
        self.nothing: dict[str, Tensor] = {}

    def saved_parts(self) -> dict[str, Any]:
        """Return the parts of a whole model that differ from the base's beside the U-Net."""
        scale = self.pipe.defaults.guidance_scale
        options = self.distilled
        scale = min(max(scale, options.w_min + 1), options.w_max + 1)
        return {"defaults": replace(self.pipe.defaults, guidance_scale=scale)}

    def prepare(self, accelerator: Accelerator) -> None:
        super().prepare(accelerator)
        student: nn.Module = self.model.pipe.unet.to(accelerator.device)
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def follow(self, averaged: Trained) -> None:
        self.averaged = averaged

    def noised(self, drawn: Drawn, generator: torch.Generator) -> dict[str, Tensor]:
        batch = super().noised(drawn, generator)
        low, high = self.distilled.w_min, self.distilled.w_max
        return batch | {"w": low + (high - low) * torch.rand(len(batch["t"]), generator=generator)}

    def example(self, count: int) -> dict[str, Tensor]:
        return super().example(count) | {"w": torch.full((count,), self.distilled.w_min)}

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the student reads beside x and t."""
        return self.with_scale(self.model.pipe.unet, self.conditions(batch), batch["w"])

    @staticmethod
    def with_scale(unet: UNet, inputs: dict[str, Tensor], w: Tensor) -> dict[str, Tensor]:
        """Return inputs with the guidance scale, if a U-Net reads one."""
        reads = unet.config.time_cond_proj_dim is not None
        return inputs | {"guidance_scale": w + 1} if reads else inputs

    @torch.no_grad()
    def teach(self, x: Tensor, t: Tensor, inputs: dict[str, Tensor], w: Tensor) -> Tensor:
        """Return the teacher's output at x, guided with w (B,).

        One that reads the guidance scale itself is not guided (Meng et al. 2023, section 3.2).
        """
        given = {name: value for name, value in inputs.items() if name != "guidance_scale"}
        with self.model.without_adapters():
            if self.teacher.config.time_cond_proj_dim is not None:
                return self.teacher(x, t, **self.with_scale(self.teacher, given, w))
            nothing = given | self.unconditional(x)
            both = {
                name: torch.cat([value, nothing[name].to(value).expand_as(value)])
                for name, value in given.items()
            }
            conditional, unconditional = self.teacher(
                torch.cat([x, x]), torch.cat([t, t]), **both
            ).chunk(2)
        return guide(conditional, unconditional, w)

    def unconditional(self, x: Tensor) -> dict[str, Tensor]:
        """Return what the teacher reads in the place of captions, one row, on x's device.

        As without a negative prompt when drawing: the states of "", or zeros (SDXL).
        """
        if not self.nothing:
            ids = self._tokens([""]).to(x.device)
            empty = text_states(self.text_models, ids, self.xl, self.captioned.clip_skip)
            if self.pipe.force_zeros_for_empty_prompt:
                empty = {name: torch.zeros_like(value) for name, value in empty.items()}
            self.nothing = empty
        return {name: value.to(x.device) for name, value in self.nothing.items()}

    @torch.no_grad()
    def predict_averaged(self, x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Return the output of the model's moving average. Raises TrainingError where sharded."""
        if is_sharded(self.model):
            raise TrainingError(
                "a whole U-Net learns from its own average, which FSDP divides among processes; "
                'train without FSDP, or with options.train = "lora"'
            )
        return self.averaged(x, t, inputs)

    def save_student(self, model: Trained, folder: Path, usage: str) -> None:
        """Write the LoRA, or the whole model. usage: how to draw with a LoRA, for its metadata."""
        if self.distilled.train == "full":
            model.pipe.save_pretrained(folder, DTYPES[self.distilled.save_dtype])
            return
        save_lora(
            model, folder, self.config, self.distilled,
            described(self, self.distilled) | {"usage": usage},
        )  # fmt: skip


def with_guidance_embedding(unet: UNet, width: int) -> UNet:
    """Return a copy of a U-Net that reads the guidance scale too, and at first ignores it.

    It embeds w in ``width`` numbers, unless ``unet`` reads it already (Meng et al. 2023, section
    3.1). All of it can be trained.
    """
    config: UNetConfig = unet.config
    if config.time_cond_proj_dim is None:
        config = replace(config, time_cond_proj_dim=width)
    student = adapt_to_cpu(UNet(config))
    own = student.state_dict()
    weights = unet.state_dict()
    for name in own.keys() - weights.keys():
        weights[name] = torch.zeros_like(own[name])
    student.load_state_dict(weights)
    return student.requires_grad_(True)


def few_steps(pipe: Pipeline, steps: int, scale: float) -> Defaults:
    """Return a pipeline's defaults with other numbers of steps and guidance."""
    return replace(pipe.defaults, num_inference_steps=steps, guidance_scale=scale)
