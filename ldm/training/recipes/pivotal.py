"""Pivotal tuning: new words and a LoRA that learn together, in one file (Roich et al. 2021).

Cloneofsimo's lora brought it to Stable Diffusion, diffusers' advanced DreamBooth to SDXL; the file
is OneTrainer's, whose words come with the LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm.adapters.textual_inversion import Inversion
from ldm.config.settings import read_table, within
from ldm.errors import ArgumentError
from ldm.training.config import TrainConfig
from ldm.training.finetuning.lora_start import begin_with_lora
from ldm.training.finetuning.trained import Trained, adapter_parts
from ldm.training.finetuning.word_files import fill_words
from ldm.training.recipes.lora import LoraOptions, check_saving, described, save_lora
from ldm.training.recipes.words import LearntWordsOptions, WordsRecipe


@dataclass(kw_only=True)
class PivotalOptions(LoraOptions, LearntWordsOptions):
    """The table ``[options]``."""

    # The words learn in this share of the steps, as by diffusers' train_text_encoder_ti_frac; then
    # they stay as they are, and the LoRA goes on.
    words_frac: float = within("(0, 1]", 1.0)


class PivotalRecipe(WordsRecipe):
    """Learns new words and the adapters of a frozen model.

    Raises ArgumentError for options that do not go together, CheckpointError for a base that
    cannot be loaded or a LoRA to start with that is of another family.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(PivotalOptions, config.options, "options.")
        check_saving(options)
        super().__init__(config, options, "a LoRA")
        if config.model:
            raise ArgumentError("[model] has settings, but a LoRA's are those of [options]")
        skip = options.clip_skip
        parts = adapter_parts(self.pipe, options, options.train_text_encoder, skip)
        self.model = Trained(self.pipe, parts | {"words": self.words}, skip)
        if config.start:
            found = begin_with_lora(self.model, config.start)
            inversions = {word: Inversion(word, vectors) for word, vectors in found.items()}
            fill_words(self.words, inversions, config.start)

    def after_backward(self, step: int) -> None:
        if step >= self.options.words_frac * self.config.steps:
            for vectors in self.words.parameters():
                vectors.grad = None  # optimizers leave out what has none

    def save(self, model: Trained, folder: Path) -> None:
        """Write the LoRA with its words; ``ldm generate --lora`` takes the run's folder."""
        save_lora(model, folder, self.config, self.options, described(self, self.options))
