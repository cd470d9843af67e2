"""What the recipes share that learn new words: the words, and captions that have them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.config.settings import choice
from ldm.errors import ArgumentError
from ldm.training.config import TrainConfig
from ldm.training.finetuning.few_steps import check_many_steps
from ldm.training.finetuning.word_templates import OBJECT, STYLE
from ldm.training.finetuning.words import WordOptions, Words, read_words, warn_without_words
from ldm.training.recipes.cached_latents import Drawn
from ldm.training.recipes.finetuning import FineTuningOptions, FineTuningRecipe


@dataclass(kw_only=True)
class LearntWordsOptions(FineTuningOptions, WordOptions):
    """What the tables ``[options]`` of these recipes share."""

    # Which captions are drawn, in each batch anew, for pictures whose own is the word alone.
    learnable_property: str = choice("object", "style")  # "a photo of a <dog>", "… in the style of"
    templates: bool | list[str] = True  # false: none; or your own: ["an icon of a {}"]


class WordsRecipe(FineTuningRecipe):
    """Learns the vectors of new words; a subclass says what else.

    Attributes:
        words: what is learnt; the averaged ones are in the averaged model.
    """

    def __init__(self, config: TrainConfig, options: LearntWordsOptions, what: str) -> None:
        """Load the base, and make the words. Raises as ``FineTuningRecipe`` and ``read_words``."""
        if options.keep_contexts:
            raise ArgumentError(
                "options.keep_contexts keeps what the text encoder makes of captions, which "
                "changes as words are learnt; leave it out"
            )
        self.templates = read_templates(options)
        super().__init__(config, options, what)
        check_many_steps(self.pipe, options.base)
        words = read_words(options, list(self.pipe.inversions.base.values()))
        self.words = Words(self.pipe, words, config.seed)
        self.text_models = self.pipe.text_models  # whose tokenizers know the words
        self.by_name = {word.lower(): word for word in self.words.counts}

    def prepare(self, accelerator: Accelerator) -> None:
        super().prepare(accelerator)
        if accelerator.is_main_process:
            captions = self.data.captions(self.rows_to_learn)
            warn_without_words(captions, self.words.counts, self.text_models[0].tokenizer)

    def noised(self, drawn: Drawn, generator: torch.Generator) -> dict[str, Tensor]:
        batch = super().noised(drawn, generator)
        texts = self.data.captions(drawn.rows)
        chosen = torch.randint(max(len(self.templates), 1), (len(texts),), generator=generator)
        for i, text in enumerate(texts):
            word = self.by_name.get(text.strip().lower())
            if word and self.templates and not batch["dropped"][i]:
                caption = self.templates[int(chosen[i])].replace("{}", word)
                batch["ids"][i] = self._tokens([caption])[0]
        return batch


def read_templates(options: LearntWordsOptions) -> tuple[str, ...]:
    """Return the captions to draw, with {} for the word. Raises ArgumentError for one without."""
    if isinstance(options.templates, bool):
        own = STYLE if options.learnable_property == "style" else OBJECT
        return own if options.templates else ()
    for text in options.templates:
        if text.count("{}") != 1:
            raise ArgumentError(
                f"options.templates holds {text!r:.120}; each needs one {{}}, for the word: "
                '"a photo of a {}"'
            )
    return tuple(options.templates)
