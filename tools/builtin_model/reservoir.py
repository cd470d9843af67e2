"""The latest pictures as latents and text states, on the device that trains."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from ldm.clip import CLIPTextEncoder
from ldm.vae import AutoencoderKL


class Reservoir:
    """Encodes pictures and captions as they come, and keeps the latest `capacity` of them.

    Both encoders compute in bfloat16; both results are kept so.

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
        self.vae = in_bfloat16(vae, device).to(memory_format=torch.channels_last)
        self.text_encoder = in_bfloat16(text_encoder, device)
        side = size // vae.config.scale
        options = {"dtype": torch.bfloat16, "device": device}
        self.latents = torch.empty(capacity, vae.config.latent_channels, side, side, **options)
        self.contexts = torch.empty(
            capacity, len(empty), text_encoder.config.hidden_size, **options
        )
        self.empty = self.states(empty[None])[0]
        self.count = 0  # pictures put in, over all

    @torch.inference_mode()
    def states(self, tokens: Tensor) -> Tensor:
        """Token ids (B, 77) → text states (B, 77, D), bfloat16."""
        return self.text_encoder(tokens.to(self.device).long()).context.clone()

    @torch.inference_mode()
    def put(self, pixels: np.ndarray, tokens: np.ndarray) -> None:
        """Add pictures, uint8 (B, H, W, 3), with token ids (B, 77) of their captions."""
        x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        x = (x.to(torch.bfloat16) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        rows = torch.arange(self.count, self.count + len(pixels)) % self.capacity
        rows = rows.to(self.device)
        self.latents[rows] = self.vae.encode(x).contiguous()
        self.contexts[rows] = self.states(torch.from_numpy(tokens.astype(np.int64)))
        self.count += len(pixels)

    def draw(self, count: int, caption_dropout: float) -> tuple[Tensor, Tensor]:
        """Random rows: latents (count, C, h, w), float32, and contexts (count, 77, D), bfloat16.

        Each context is that of "" with probability `caption_dropout`.
        """
        filled = min(self.count, self.capacity)
        rows = torch.randint(filled, (count,), device=self.device)
        dropped = torch.rand(count, 1, 1, device=self.device) < caption_dropout
        contexts = torch.where(dropped, self.empty, self.contexts[rows])
        return self.latents[rows].float(), contexts


def in_bfloat16(module: nn.Module, device: torch.device) -> nn.Module:
    """Copy a network, frozen, onto a device in bfloat16."""
    return copy.deepcopy(module).requires_grad_(False).eval().to(device, torch.bfloat16)
