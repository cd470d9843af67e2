"""Textual inversion: new words for a text encoder (Gal et al. 2022, "An image is worth one word").

A file holds one or several vectors, which replace its word in a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.tensors import read_embedding
from ldm.errors import ArgumentError, CheckpointError
from ldm.text.conditioning import TextModel

# SDXL's files have vectors for both encoders.
XL_KEYS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


@dataclass
class Inversion:
    """One file."""

    word: str
    vectors: dict[str, Tensor]  # part of the pipeline → (n, D)


class TextualInversions:
    """The new words of a pipeline's text encoders."""

    def __init__(self, models: Mapping[str, TextModel]) -> None:
        """Take the models as loaded, by name: "text_encoder", "text_encoder_2"."""
        self.base = dict(models)
        self.models = dict(models)  # with the words
        self.loaded: dict[str, Inversion] = {}
        self.bundled: dict[str, Inversion] = {}  # of the LoRAs in use

    def load(self, path: str | Path, token: str | None = None) -> Inversion:
        """Load a file's word: ``token``, else the file's own name for it, else the file's name.

        Raises CheckpointError for a file that does not fit, ArgumentError for a word in use.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; give a textual inversion")
        found, name = read_embedding(path)
        word = token or name or path.stem
        if word in self.loaded:
            raise ArgumentError(f"the word {word!r} is loaded already; give another token")
        inversion = Inversion(word, {self.part_of(key, v, path): v for key, v in found.items()})
        self.loaded[word] = inversion
        self.apply()
        return inversion

    def part_of(self, key: str, vectors: Tensor, path: Path) -> str:
        """Find the text encoder that vectors (n, D) are for: SDXL's by their key, others by D."""
        widths = {part: model.encoder.config.hidden_size for part, model in self.base.items()}
        named = XL_KEYS.get(key)
        parts = [named] if named else list(widths)
        for part in parts:
            if widths.get(part) == vectors.shape[1]:
                return part
        expected = ", ".join(map(str, widths.values()))
        raise CheckpointError(
            f"{path} has vectors of width {vectors.shape[1]}, this model's text encoders "
            f"{expected}; it is for another family of models"
        )

    def unload(self) -> None:
        """Remove all loaded words."""
        self.loaded.clear()
        self.apply()

    def use_bundled(self, words: Mapping[str, dict[str, Tensor]]) -> None:
        """Add these words of LoRAs, and no others; one that is also loaded keeps its vectors."""
        if words or self.bundled:
            self.bundled = {word: Inversion(word, vectors) for word, vectors in words.items()}
            self.apply()

    def apply(self) -> None:
        """Give the words loaded to the tokenizers, and their vectors to the encoders."""
        inversions = self.bundled | self.loaded
        for part, model in self.base.items():
            mine = {w: i.vectors[part] for w, i in inversions.items() if part in i.vectors}
            embeddings = model.encoder.text_model.embeddings
            if not mine:
                embeddings.extra, self.models[part] = None, model
                continue
            known = embeddings.token_embedding.weight
            embeddings.extra = torch.cat(list(mine.values())).to(known)
            words = {word: len(vectors) for word, vectors in mine.items()}
            self.models[part] = TextModel(model.tokenizer.with_words(words), model.encoder)
