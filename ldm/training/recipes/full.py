"""Fine-tune the weights of a model that is loaded: all of its U-Net, and of its text encoders."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.config.settings import choice, read_table
from ldm.errors import ArgumentError
from ldm.loading.write_file import family_of
from ldm.pipeline import Pipeline
from ldm.training.config import TrainConfig
from ldm.training.finetuning.few_steps import check_many_steps
from ldm.training.finetuning.networks import networks_of
from ldm.training.finetuning.trained import Trained
from ldm.training.recipes.finetuning import FineTuningOptions, FineTuningRecipe
from ldm.training.recipes.lora import DTYPES


@dataclass(kw_only=True)
class FullOptions(FineTuningOptions):
    """The table ``[options]``."""

    train: tuple[str, ...] = ("unet",)  # and "text_encoder", "text_encoder_2"
    save_as: str = ""  # a file in the run's folder, NAME.safetensors; "": a diffusers folder
    save_dtype: str = choice(*DTYPES)  # of what is trained; the rest stays as it is


class FullRecipe(FineTuningRecipe):
    """Learns all weights of a model's U-Net, of its text encoders or of both.

    Attributes:
        untrained: the other parts as the base's files have them, to be saved so.

    Raises ArgumentError for options that do not go together, CheckpointError for a base that
    cannot be loaded, or that no single file can hold.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(FullOptions, config.options, "options.")
        name = options.save_as
        if name and (name != Path(name).name or not name.endswith(".safetensors")):
            raise ArgumentError(
                f"options.save_as is {name!r:.200}; give a file's name that ends in .safetensors, "
                "or leave it out for a folder"
            )
        super().__init__(config, options, "a full fine-tuning")
        if config.model or config.start:
            raise ArgumentError(
                "[model] and start are not for this recipe, which trains options.base; leave them "
                "out"
            )
        check_many_steps(self.pipe, options.base)
        if options.keep_contexts and any(part != "unet" for part in options.train):
            raise ArgumentError(
                "options.keep_contexts keeps the states of a text encoder that is trained; leave "
                "one of them out"
            )
        if name:
            family_of(self.pipe.parts)
        self.model = networks_of(self.pipe, options.train, options.clip_skip)
        stored = Pipeline.from_pretrained(options.base or None, dtype="auto", device="cpu").parts
        self.untrained = {part: stored[part] for part in stored if part not in self.model.parts}

    def save(self, model: Trained, folder: Path) -> None:
        """Write the whole model: ``ldm generate --model`` takes the run's folder, or the file."""
        dtype = DTYPES[self.options.save_dtype]
        trained: dict[str, Any] = {
            name: copy.deepcopy(part).to("cpu", dtype) for name, part in model.parts.items()
        }
        pipe = Pipeline(**self.untrained | trained)
        if not self.options.save_as:
            pipe.save_pretrained(folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            pipe.save_single_file(folder / self.options.save_as)
