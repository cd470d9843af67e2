"""Textual inversion: a word for what a few pictures show (Gal et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm.config.settings import choice, read_table
from ldm.errors import ArgumentError
from ldm.training.config import TrainConfig
from ldm.training.finetuning.trained import Trained
from ldm.training.finetuning.word_files import begin_with_words, save_words
from ldm.training.recipes.words import LearntWordsOptions, WordsRecipe


@dataclass(kw_only=True)
class TextualInversionOptions(LearntWordsOptions):
    """The table ``[options]``."""

    # "a1111": RUN/WORD.safetensors, which every tool reads; "diffusers": RUN/learned_embeds….
    save_as: str = choice("a1111", "diffusers")


class TextualInversionRecipe(WordsRecipe):
    """Learns new words for a frozen model.

    Raises ArgumentError for words and options that do not go, CheckpointError for a base that
    cannot be loaded or words to start with that are of another family.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(TextualInversionOptions, config.options, "options.")
        if options.save_as == "diffusers" and len(options.words) > 1:
            raise ArgumentError(
                f'options.save_as is "diffusers", whose files have one word, not '
                f'{len(options.words)}; use "a1111", which diffusers reads, too'
            )
        super().__init__(config, options, "a word")
        if config.model:
            raise ArgumentError("[model] has settings, but a word's are those of [options]")
        self.model = Trained(self.pipe, {"words": self.words}, options.clip_skip)
        begin_with_words(self.words, self.pipe, config.start)

    def save(self, model: Trained, folder: Path) -> None:
        """Write the words; ``ldm generate --embedding`` takes each file."""
        assert model.words is not None
        save_words(model.words, folder, self.options.save_as)
