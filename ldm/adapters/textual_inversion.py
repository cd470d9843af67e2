"""Textual inversion: new words for a text encoder (Gal et al. 2022, "An image is worth one word").

A file holds one or several vectors, which replace its word in a prompt, or several words with
theirs. Its names say which:

- ``emb_params`` (A1111) and ``emp_params`` (OneTrainer): a word for the model's text encoder;
- ``clip_l`` and ``clip_g``: the vectors of one word for SDXL's two;
- with ``_out`` at the end (OneTrainer): vectors that replace the encoder's states of the word;
- anything else: a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.tensors import ONE_WORD, read_embedding
from ldm.errors import ArgumentError, CheckpointError
from ldm.text.conditioning import TextModel

# SDXL's files have vectors for both encoders.
XL_KEYS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
OUT = "_out"
# By the width of the larger text encoder.
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL"}


@dataclass
class Inversion:
    """One word."""

    word: str
    vectors: dict[str, Tensor]  # part of the pipeline → (n, D), what the encoder reads
    outputs: dict[str, Tensor] = field(default_factory=dict)  # what stands for its states


class TextualInversions:
    """The new words of a pipeline's text encoders."""

    def __init__(self, models: Mapping[str, TextModel]) -> None:
        """Take the models as loaded, by name: "text_encoder", "text_encoder_2"."""
        self.base = dict(models)
        self.models = dict(models)  # with the words
        self.loaded: dict[str, Inversion] = {}
        self.bundled: dict[str, Inversion] = {}  # of the LoRAs in use

    def load(self, path: str | Path, token: str | Sequence[str] | None = None) -> list[Inversion]:
        """Load a file's words: ``token``, else the file's own names, else the file's name.

        Raises CheckpointError for a file that does not fit, ArgumentError for a word in use, or for
        another number of tokens than the file has words.
        """
        inversions = self.read(path, token)
        for inversion in inversions:
            if inversion.word in self.loaded:
                raise ArgumentError(
                    f"the word {inversion.word!r} is loaded already; give another token"
                )
        self.loaded |= {inversion.word: inversion for inversion in inversions}
        self.apply()
        return inversions

    def read(self, path: str | Path, token: str | Sequence[str] | None = None) -> list[Inversion]:
        """Read a file's words without loading them; raises as ``load``."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; give a textual inversion")
        found, name = read_embedding(path)
        if ONE_WORD.issuperset(found) or len(found) == 1:
            groups = {name or path.stem: found}
        else:
            groups = {key: {key: vectors} for key, vectors in found.items()}
        words = choose_words(list(groups), token, path)
        return [
            self.inversion(word, group, path)
            for word, group in zip(words, groups.values(), strict=True)
        ]

    def inversion(self, word: str, found: Mapping[str, Tensor], path: Path) -> Inversion:
        """Sort a word's vectors by text encoder. Raises CheckpointError if they do not fit."""
        inputs = {key: value for key, value in found.items() if not key.endswith(OUT)}
        if len(found) == 1 and not ONE_WORD.issuperset(found):  # "fade_out" is a word
            inputs = dict(found)
        vectors = {self.part_of(key, value, path): value for key, value in inputs.items()}
        outputs = {
            self.part_of(key.removesuffix(OUT), value, path): value
            for key, value in found.items()
            if key not in inputs
        }
        for part, states in outputs.items():
            # Where the states are replaced, nothing is read, as in OneTrainer.
            known = vectors.setdefault(part, torch.zeros_like(states))
            if known.shape != states.shape:
                raise CheckpointError(
                    f"{path} has {len(known)} vectors and {len(states)} states of one word; get it "
                    "again"
                )
        return Inversion(word, vectors, outputs)

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
            f"{path} has vectors of width {vectors.shape[1]}{family_of([vectors.shape[1]])}, this "
            f"model's text encoders {expected}{family_of(widths.values())}; it is for another "
            "family of models"
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
            embeddings.extra = embeddings.outputs = None
            if not mine:
                self.models[part] = model
                continue
            known = embeddings.token_embedding.weight
            embeddings.extra = torch.cat(list(mine.values())).to(known)
            words = {word: len(vectors) for word, vectors in mine.items()}
            self.models[part] = TextModel(model.tokenizer.with_words(words), model.encoder)
            states = {w: i.outputs[part] for w, i in self.loaded.items() if part in i.outputs}
            if states:
                ids = dict(
                    zip(
                        words,
                        torch.arange(len(embeddings.extra), device="cpu").split([*words.values()]),
                        strict=True,
                    )
                )
                replaced = torch.cat([ids[word] for word in states]) + len(known)
                embeddings.outputs = replaced, torch.cat(list(states.values())).to(known)


def family_of(widths: Iterable[int]) -> str:
    """Name the family of models with text encoders of these widths: " (SDXL)"; "" if unknown."""
    name = FAMILIES.get(max(widths))
    return f" ({name})" if name else ""


def choose_words(own: list[str], token: str | Sequence[str] | None, path: Path) -> list[str]:
    """Return the words to use for a file's. Raises ArgumentError for another number of tokens."""
    if token is None:
        return own
    words = [token] if isinstance(token, str) else list(token)
    if len(words) != len(own) or len(set(words)) < len(words):
        raise ArgumentError(
            f"token is {token!r}, but {path} has {len(own)} words ({', '.join(own)}); give one "
            "token for each, all different, or none"
        )
    return words
