"""New words that learn (Gal et al. 2022, "An image is worth one word"): vectors in place of tokens.

All that is trained are these vectors; the text encoder and the U-Net pass the gradient on.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.adapters.textual_inversion import Inversion
from ldm.config.settings import read_table, within
from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline
from ldm.text.conditioning import TextModel
from ldm.text.tokenizer import CLIPTokenizer

# What prompts' grammars, file names and keys of files read as something else.
SPECIAL = set('()[]{}|:,\\/"*?') | {"__"}
OPERATORS = ("AND", "BREAK")
LONGEST = 100  # characters of a word, which becomes a file's name
MOST_VECTORS = 74  # of the 75 tokens that a text has room for; with 75, no other word had any


@dataclass(kw_only=True)
class WordSettings:
    """What one word has of its own: a table ``[options.words.WORD]``."""

    initializer: str | None = None
    vectors: int | None = within(f"[1, {MOST_VECTORS}]", None)


@dataclass(kw_only=True)
class WordOptions:
    """The words to learn: a part of the table ``[options]``."""

    # ["<dog>"], or a table for each: {"<dog>" = {initializer = "dog", vectors = 4}, …}
    words: list[str] | dict[str, Any]
    # What words begin with that have none of their own: a text, whose tokens' vectors are spread
    # over the word's; "": random vectors of the size of the encoder's own.
    initializer: str = ""
    vectors: int = within(f"[1, {MOST_VECTORS}]", 1)  # of words without a number of their own


@dataclass(frozen=True)
class NewWord:
    """A word to learn."""

    word: str
    initializer: str
    vectors: int


def read_words(options: WordOptions, models: Sequence[TextModel]) -> list[NewWord]:
    """Return the words that the options name.

    Raises ArgumentError for a word that prompts cannot use, or that the models' tokenizers have.
    """
    tables = options.words
    if not isinstance(tables, dict):
        tables = {word: {} for word in tables}
        if len(tables) < len(options.words):
            raise ArgumentError(f"options.words is {options.words}; give each word once")
    if not tables:
        raise ArgumentError('options.words is empty; give the words to learn, such as ["<dog>"]')
    words = []
    for word, values in tables.items():
        if not isinstance(values, dict):
            raise ArgumentError(
                f"options.words.{word} is {values!r:.60}; expected a table of initializer, vectors"
            )
        own = read_table(WordSettings, values, f"options.words.{word}.")
        for model in models:
            check_word(word, model.tokenizer)
        text = options.initializer if own.initializer is None else own.initializer
        words.append(NewWord(word, text, own.vectors or options.vectors))
    if len({word.word.lower() for word in words}) < len(words):
        raise ArgumentError(
            f"options.words is {', '.join(tables)}, but tokenizers do not tell upper from lower "
            "case; give words that differ in more"
        )
    return words


def check_word(word: str, tokenizer: CLIPTokenizer) -> None:
    """Raise ArgumentError for a word that prompts cannot use, or that the tokenizer knows."""
    where = f"options.words holds {word!r:.120}"
    bad = sorted({sign for sign in SPECIAL if sign in word} | {c for c in word if not is_plain(c)})
    if bad:
        raise ArgumentError(
            f"{where}, with {', '.join(map(repr, bad))}, which prompts read as something else; "
            "give a word without, such as <dog>"
        )
    if word in OPERATORS or not any(map(str.isalnum, word)) or len(word) > LONGEST:
        raise ArgumentError(
            f"{where}; a word needs letters or digits, at most {LONGEST} characters, and may not "
            f"be {' or '.join(OPERATORS)}: give one such as <dog>"
        )
    if tokenizer.is_token(word):
        raise ArgumentError(
            f"{where}, which is a token of the model's vocabulary already; give a word of your "
            "own, such as <dog> or zwilbo, or no other prompt could mean the old one"
        )


def is_plain(character: str) -> bool:
    """Whether a character can be seen, which white space cannot."""
    return character.isprintable() and not character.isspace()


class Words(nn.Module):
    """The vectors of new words, for each text encoder of a pipeline.

    Attributes:
        counts: word → how many vectors it has.
        vectors: part of the pipeline ("text_encoder", …) → those of all words, (n, D).
    """

    def __init__(self, pipe: Pipeline, words: Sequence[NewWord], seed: int = 0) -> None:
        """Make the vectors, and let the pipeline's tokenizers know the words."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.counts = {word.word: word.vectors for word in words}
        self.vectors = nn.ParameterDict(
            {
                part: nn.Parameter(
                    torch.cat([initial_vectors(word, model, generator) for word in words])
                )
                for part, model in pipe.inversions.base.items()
            }
        )
        pipe.inversions.loaded |= {
            word: Inversion(word, vectors) for word, vectors in self.values().items()
        }
        pipe.inversions.apply()
        self.attach(pipe)

    def values(self) -> dict[str, dict[str, Tensor]]:
        """Return each word's vectors (n, D) by part; they share memory with those that learn."""
        counts = list(self.counts.values())
        split = {part: value.detach().split(counts) for part, value in self.vectors.items()}
        return {
            word: {part: pieces[i] for part, pieces in split.items()}
            for i, word in enumerate(self.counts)
        }

    def attach(self, pipe: Pipeline) -> None:
        """Let a pipeline's text encoders read these vectors for the words."""
        for part, vectors in self.vectors.items():
            embeddings = pipe.inversions.base[part].encoder.text_model.embeddings
            embeddings.extra = vectors.view_as(vectors)  # a Parameter would become the encoder's


def initial_vectors(word: NewWord, model: TextModel, generator: torch.Generator) -> Tensor:
    """Return the vectors (n, D) that a word begins with.

    Without an initializer, they are random, with the deviation of the encoder's own, as in
    diffusers' train_dreambooth_lora_sdxl_advanced.
    """
    known = model.encoder.text_model.embeddings.token_embedding.weight.detach()
    if not word.initializer.strip():
        values = torch.randn(word.vectors, known.shape[1], generator=generator)
        return values.to(known) * known.std()
    ids = model.tokenizer.encode(word.initializer)
    if len(ids) > word.vectors:
        warnings.warn(
            f"the initializer {word.initializer!r:.120} of {word.word} has {len(ids)} tokens for "
            f"{word.vectors} vector{'s' * (word.vectors > 1)}, which begin with means of theirs; "
            f"give {len(ids)} vectors, or one of the tokens",
            stacklevel=2,
        )
    return spread(known[ids], word.vectors)


def spread(tokens: Tensor, count: int) -> Tensor:
    """Spread the vectors of tokens (m, D) over those of a word, (count, D), in their order.

    If there are more tokens, each vector is the mean of some; else they repeat, as A1111 has it.
    """
    if len(tokens) > count:
        return torch.stack([part.mean(0) for part in tokens.tensor_split(count)])
    return tokens[torch.arange(count) * len(tokens) // count]


def warn_without_words(
    captions: Sequence[str], words: Mapping[str, int], tokenizer: CLIPTokenizer
) -> int:
    """Warn of captions that have none of the words to learn, and of words in none of them.

    tokenizer: knows the words. Returns the number of such captions.
    """
    ids = {word: set(tokenizer.encode(word)) for word in words}
    found = [set(tokenizer.encode(text)) for text in captions]
    without = [
        text for text, own in zip(captions, found, strict=True)
        if all(own.isdisjoint(new) for new in ids.values())
    ]  # fmt: skip
    names = ", ".join(words)
    if without:
        warnings.warn(
            f"{len(without)} of {len(captions)} captions have no word that is to be learnt, "
            f"{names} (such as {without[0][:60]!r}); nothing is learnt from their pictures: write "
            "it into them",
            stacklevel=2,
        )
    for word, new in ids.items():
        if len(words) > 1 and len(without) < len(captions) and all(map(new.isdisjoint, found)):
            warnings.warn(f"{word} is in no caption, and is not learnt", stacklevel=2)
    return len(without)
