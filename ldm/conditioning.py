"""Prompts → what the U-Net is conditioned on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.clip import CLIPTextEncoder
from ldm.tokenizer import CLIPTokenizer

# The refiner of SDXL is told how pleasing its pictures are to be, of 10; diffusers' values.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


class PromptCutWarning(UserWarning):
    """A prompt is longer than the text encoder reads; the message names the words left out."""


@dataclass(frozen=True)
class TextModel:
    """A tokenizer and the text encoder that reads its ids."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextEncoder


@dataclass(frozen=True)
class Conditioning:
    """What a U-Net is told about B pictures; the last two are SDXL's."""

    context: Tensor  # (B, tokens, D), for cross-attention
    pooled: Tensor | None = None  # (B, P): the text in one state
    time_ids: Tensor | None = None  # (B, 5 or 6), float32: sizes in pixels

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that are there, in the order in which the U-Net takes them."""
        parts = (self.context, self.pooled, self.time_ids)
        return tuple(part for part in parts if part is not None)


def encode_prompts(
    models: Sequence[TextModel], prompts: Sequence[str], clip_skip: int = 1, xl: bool = False
) -> Conditioning:
    """The states of the prompts' tokens: a context (B, 77, D) in the encoders' dtype and device.

    Of several models, the states stand side by side in D. ``xl`` is SDXL's way (Podell et al.
    2023, section 2.1): the last layer but one, without the final norm, and the pooled state of the
    last model.

    clip_skip counts as A1111 does: 1 takes the model's own layer, 2 the one before; diffusers calls
    these None and 1.
    Warns with PromptCutWarning for words that do not fit into the 77 tokens.
    Raises ArgumentError where clip_skip asks for a layer that is not there.
    """
    for prompt in dict.fromkeys(prompts):
        if words := models[0].tokenizer.cut(prompt):
            warnings.warn(
                f"the prompt is longer than {models[0].tokenizer.model_max_length} tokens; "
                f"these words are left out: {words!r}",
                PromptCutWarning,
                stacklevel=2,
            )
    states = []
    with torch.no_grad():
        for model in models:
            device = next(model.encoder.parameters()).device
            ids = torch.tensor(model.tokenizer(prompts), device=device)
            states.append(model.encoder(ids, skip=clip_skip - 1 + xl, norm=not xl))
    context = torch.cat([state.context for state in states], dim=-1)
    return Conditioning(context, states[-1].pooled if xl else None)


def time_ids(height: int, width: int, count: int, aesthetic_score: float) -> list[float]:
    """The sizes that SDXL is told (Podell et al. 2023, section 2.2): ``count`` of them, 5 or 6.

    The picture's size before it was cropped, the crop's corner, and the size to draw; for the
    refiner, a score instead of the last.
    """
    end = [aesthetic_score] if count == 5 else [height, width]
    return [height, width, 0, 0, *end]
