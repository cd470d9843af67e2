"""Prompts → what the U-Net is conditioned on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.clip import CLIPTextEncoder
from ldm.tokenizer import CLIPTokenizer


class PromptCutWarning(UserWarning):
    """A prompt is longer than the text encoder reads; the message names the words left out."""


@torch.no_grad()
def encode_prompts(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextEncoder,
    prompts: Sequence[str],
    clip_skip: int = 1,
) -> Tensor:
    """The states of the prompts' tokens: (B, 77, D), in the encoder's dtype and on its device.

    clip_skip counts as A1111 does: 1 takes the last layer, 2 the one before; diffusers calls
    these None and 1.
    Warns with PromptCutWarning for words that do not fit into the 77 tokens.
    Raises ArgumentError where clip_skip asks for a layer that is not there.
    """
    for prompt in dict.fromkeys(prompts):
        if words := tokenizer.cut(prompt):
            warnings.warn(
                f"the prompt is longer than {tokenizer.model_max_length} tokens; "
                f"these words are left out: {words!r}",
                PromptCutWarning,
                stacklevel=2,
            )
    device = next(text_encoder.parameters()).device
    return text_encoder(torch.tensor(tokenizer(prompts), device=device), skip=clip_skip - 1).context
