"""Train a LoRA, or one of its kin, of any model that is loaded (Hu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.adapters import lora_writing
from ldm.checkpoints.lora_kinds import Factors
from ldm.checkpoints.lora_names import Module
from ldm.checkpoints.tensors import write_tensors
from ldm.config import write_json
from ldm.config.settings import choice, read_table
from ldm.errors import ArgumentError
from ldm.loading.single_file import names_of
from ldm.training.config import TrainConfig
from ldm.training.finetuning.adapters import AdapterOptions
from ldm.training.finetuning.few_steps import check_many_steps
from ldm.training.finetuning.lora_metadata import lora_metadata
from ldm.training.finetuning.lora_start import begin_with_lora
from ldm.training.finetuning.trained import Trained, adapters_of
from ldm.training.finetuning.word_files import bundled, save_words
from ldm.training.recipes.finetuning import FineTuningOptions, FineTuningRecipe

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(kw_only=True)
class LoraSaving(AdapterOptions):
    """How adapters are saved."""

    # "kohya": RUN/NAME.safetensors, which every tool reads. "diffusers":
    # RUN/pytorch_lora_weights.safetensors; "peft": a folder for each part.
    save_as: str = choice("kohya", "diffusers", "peft")
    save_dtype: str = choice(*DTYPES)
    name: str = ""  # of the file, and by which prompts call it: <lora:NAME:1>; "": the run's


@dataclass(kw_only=True)
class LoraOptions(FineTuningOptions, LoraSaving):
    """The table ``[options]``."""

    train_text_encoder: bool = False  # whether the text encoders get adapters, too


class LoraRecipe(FineTuningRecipe):
    """Learns the adapters of a frozen model: LoRA, LoCon, DoRA, LoHa or LoKr.

    Raises ArgumentError for options that do not go together, CheckpointError for a base that
    cannot be loaded or a LoRA to start with that is of another family.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(LoraOptions, config.options, "options.")
        check_saving(options)
        super().__init__(config, options, "a LoRA")
        check_many_steps(self.pipe, options.base)
        if config.model:
            raise ArgumentError("[model] has settings, but a LoRA's are those of [options]")
        text = options.train_text_encoder
        if text and options.keep_contexts:
            raise ArgumentError(
                "options.keep_contexts keeps the states of a text encoder that is trained; leave "
                "it or options.train_text_encoder out"
            )
        self.model = adapters_of(self.pipe, options, text, options.clip_skip)
        begin_with_lora(self.model, config.start)

    def save(self, model: Trained, folder: Path) -> None:
        """Write the LoRA; ``ldm generate --lora`` takes the run's folder."""
        save_lora(model, folder, self.config, self.options, described(self, self.options))


def described(recipe: FineTuningRecipe, options: LoraSaving) -> dict[str, Any]:
    """Return what a LoRA's file says of the run: see ``lora_metadata``."""
    rows = recipe.rows_to_learn
    return {
        "title": options.name or Path(recipe.config.output).name,
        "base": Path(recipe.tuning.base).name or "ldm's built-in model",
        "pictures": len(rows),
        "captions": recipe.data.captions(rows),
        "size": recipe.latents.sizes[0],
        "clip_skip": recipe.tuning.clip_skip,
    }


def check_saving(options: LoraSaving) -> None:
    """Raise ArgumentError for kinds of adapters that a layout cannot hold."""
    name = options.name
    if name != Path(name).name or name.endswith(".safetensors"):
        raise ArgumentError(f"options.name is {name!r:.200}; give a file's name without its ending")
    if options.save_as == "diffusers" and options.kind != "lora":
        raise ArgumentError(
            f'options.save_as is "diffusers", which reads no {options.kind}; use "kohya" or "peft"'
        )
    if options.save_as == "peft" and getattr(options, "train_text_encoder", False):
        raise ArgumentError(
            'options.save_as is "peft", but transformers has changed the names of text encoders '
            'that such folders hold; use "kohya" or "diffusers", which peft reads by diffusers'
        )


def updates_of(model: Trained, dtype: torch.dtype) -> dict[Module, Factors[Tensor]]:
    """Return the factors of all layers with adapters, by part and path, on the CPU."""
    found: dict[Module, Factors[Tensor]] = {}
    for part, adapters in model.adapters.items():
        for path, adapter in adapters.items():
            values = adapter.values()
            tensors = {
                role: value.detach().to("cpu", dtype).contiguous()
                for role, value in values.tensors.items()
            }
            found[part, path] = Factors(tensors, alpha=values.alpha)
    return found


def save_lora(
    model: Trained,
    folder: Path,
    config: TrainConfig,
    options: LoraSaving,
    data: dict[str, Any],
) -> None:
    """Write adapters, and words if there are any, into the folder of a run.

    kohya's layout has them in one file, as OneTrainer does. data: see ``lora_metadata``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    updates = updates_of(model, DTYPES[options.save_dtype])
    pipe, words = model.pipe, model.words
    if words is not None and options.save_as != "kohya":
        save_words(words, folder, "a1111")
    if options.save_as == "peft":
        save_peft(updates, folder)
        return
    if options.save_as == "kohya":
        tensors = lora_writing.kohya_tensors(updates, names_of(pipe.unet.config), pipe.xl)
        tensors |= {} if words is None else bundled(words)
        name = f"{data['title']}.safetensors"
    else:
        tensors = lora_writing.diffusers_tensors(updates)
        name = "pytorch_lora_weights.safetensors"
    metadata = lora_metadata(config, options, pipe, tensors, data)
    write_tensors(tensors, folder / name, metadata)


def save_peft(updates: dict[Module, Factors[Tensor]], folder: Path) -> None:
    """Write a folder for each part, as ``PeftModel.from_pretrained`` reads it."""
    for part in dict.fromkeys(part for part, _ in updates):
        own = {module: factors for module, factors in updates.items() if module[0] == part}
        tensors = {
            f"base_model.model.{name}": value
            for name, value in lora_writing.peft_tensors(own).items()
        }
        config = lora_writing.peft_config(own)
        (folder / part).mkdir(exist_ok=True)
        write_json(folder / part / "adapter_config.json", {"peft_type": "LORA"} | config)
        write_tensors(tensors, folder / part / "adapter_model.safetensors")
