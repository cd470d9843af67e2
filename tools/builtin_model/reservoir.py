"""The latest pictures as latents and text states, on the device that trains."""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ldm.clip import CLIPTextEncoder
from ldm.vae import AutoencoderKL


class Reservoir:
    """Encodes pictures and captions as they come, and keeps the latest `capacity` of them.

    Both encoders compute in bfloat16, and their results are kept in it. Picture number n lies in
    row n modulo `capacity`.

    Args:
        vae: encodes the pictures; its mean is kept, scaled.
        text_encoder: gives each caption's states (77, D).
        empty: token ids (77,) of the caption "".
        size: px of a picture's side.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextEncoder,
        empty: Tensor,
        size: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        self.device, self.capacity = device, capacity
        self.vae = in_bfloat16(vae, device)
        self.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.text_encoder = in_bfloat16(text_encoder, device)
        side = size // vae.config.scale
        latent = (vae.config.latent_channels, side, side)
        context = (len(empty), text_encoder.config.hidden_size)
        self.latents = torch.empty(capacity, *latent, dtype=torch.bfloat16, device=device)
        self.contexts = torch.empty(capacity, *context, dtype=torch.bfloat16, device=device)
        self.empty = self.encode_text(empty[None])[0]
        self.count = 0  # pictures added so far

    @torch.inference_mode()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode token ids (B, 77) → text states (B, 77, D), bfloat16."""
        return self.text_encoder(tokens.to(self.device).long()).context

    @torch.inference_mode()
    def put(self, pixels: np.ndarray, tokens: np.ndarray) -> None:
        """Add pictures, uint8 (B, H, W, 3), with token ids (B, 77) of their captions."""
        x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        x = (x.to(torch.bfloat16) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        numbers = torch.arange(self.count, self.count + len(pixels), device=self.device)
        rows = numbers % self.capacity
        self.latents[rows] = self.vae.encode(x).contiguous()
        self.contexts[rows] = self.encode_text(torch.from_numpy(tokens.astype(np.int64)))
        self.count += len(pixels)

    def draw(self, count: int, caption_dropout: float) -> tuple[Tensor, Tensor]:
        """Draw random rows: float32 latents (count, C, h, w), bfloat16 contexts (count, 77, D).

        Each context is that of "" with probability `caption_dropout`.
        """
        filled = min(self.count, self.capacity)
        rows = torch.randint(filled, (count,), device=self.device)
        dropped = torch.rand(count, 1, 1, device=self.device) < caption_dropout
        contexts = torch.where(dropped, self.empty, self.contexts[rows])
        return self.latents[rows].float(), contexts


M = TypeVar("M", bound=nn.Module)


def in_bfloat16(module: M, device: torch.device) -> M:
    """Copy a network, frozen, onto a device in bfloat16."""
    return copy.deepcopy(module).requires_grad_(False).eval().to(device, torch.bfloat16)
