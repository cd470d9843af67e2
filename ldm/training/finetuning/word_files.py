"""Learnt words as files that A1111's web UI, ComfyUI and diffusers read; one to start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.adapters.textual_inversion import Inversion
from ldm.checkpoints.lora_words import BUNDLED
from ldm.checkpoints.tensors import write_tensors
from ldm.errors import ArgumentError, CheckpointError
from ldm.pipeline import Pipeline
from ldm.training.finetuning.words import Words

# How files call the vectors for each text encoder: SDXL's, and those that are bundled with LoRAs.
NAMES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
# The files of diffusers' textual_inversion.py and textual_inversion_sdxl.py.
DIFFUSERS = {
    "text_encoder": "learned_embeds.safetensors",
    "text_encoder_2": "learned_embeds_2.safetensors",
}


def save_words(words: Words, folder: Path, save_as: str) -> None:
    """Write learnt words into a folder.

    save_as: "a1111", a file for each word, whose name is the word; or "diffusers", a file for each
    text encoder, with one word.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for word, vectors in on_cpu(words).items():
        if save_as == "diffusers":
            for part, value in vectors.items():
                write_tensors({word: value}, folder / DIFFUSERS[part])
            continue
        several = "text_encoder_2" in vectors
        named = {NAMES[part] if several else "emb_params": v for part, v in vectors.items()}
        write_tensors(named, folder / f"{word}.safetensors")


def bundled(words: Words) -> dict[str, Tensor]:
    """Name learnt words as OneTrainer does beside a LoRA, whose file then brings them."""
    return {
        f"{BUNDLED}{word}.{NAMES[part]}": value
        for word, vectors in on_cpu(words).items()
        for part, value in vectors.items()
    }


def on_cpu(words: Words) -> dict[str, dict[str, Tensor]]:
    """Return each word's vectors by part, copied."""
    return {
        word: {part: value.to("cpu", torch.float32, copy=True) for part, value in vectors.items()}
        for word, vectors in words.values().items()
    }


def begin_with_words(words: Words, pipe: Pipeline, start: str) -> None:
    """Give words the vectors of a textual inversion's file; "" leaves them as they are.

    Raises CheckpointError for a file that is broken or of another family, ArgumentError for one
    without these words or with another number of vectors.
    """
    if start:
        found = pipe.inversions.read(start)
        fill_words(words, {each.word: each for each in found}, start)


@torch.no_grad()
def fill_words(words: Words, found: Mapping[str, Inversion], start: str) -> None:
    """Copy the vectors of a file's words; of one word to one, whatever they are called."""
    if len(found) == len(words.counts) == 1:
        found = dict(zip(words.counts, found.values(), strict=True))
    for word, vectors in words.values().items():
        if word not in found:
            raise ArgumentError(
                f"start is {start!r}, which has the words {', '.join(found) or '(none)'}, but not "
                f"{word}; name options.words as the file has them"
            )
        for part, place in vectors.items():
            value = found[word].vectors.get(part)
            if value is None:
                raise CheckpointError(
                    f"start is {start!r}, which has no vectors of {word} for {part}: it is of a "
                    "model with other text encoders"
                )
            if len(value) != len(place):
                raise ArgumentError(
                    f"start is {start!r}, where {word} has {len(value)} vectors; the options make "
                    f"{len(place)}: set options.vectors to {len(value)}"
                )
            place.copy_(value)
