"""TAESD, the tiny autoencoder: a small stand-in for a model's VAE, of a hundredth of its cost.

It was distilled from the VAEs of Stable Diffusion 1.x and 2.x (TAESD) and XL (TAESDXL), and reads
and writes their scaled latents. Fine detail is less exact.

Source: Ollin Boer Bohan, https://github.com/madebyollin/taesd; diffusers calls it AutoencoderTiny.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import TAESDConfig
from ldm.errors import ArgumentError

CLAMP = 3  # latents are squashed to (−3, 3) before they are decoded
DECODER_ALONE = (
    "the VAE is the decoder of a TAESD alone, and an image is to be encoded; put its encoder "
    "beside it (taesd_encoder beside taesd_decoder), or use another VAE"
)


def conv(in_channels: int, out_channels: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Make a 3×3 convolution that keeps the size, or halves it with a stride of 2."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)


class Block(nn.Module):
    """Three convolutions and a shortcut; there are no norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class Encoder(nn.Module):
    """Pixels (B,3,H,W) in [-1, 1] → latents (B,4,H/8,W/8); sides are rounded up."""

    def __init__(self, config: TAESDConfig) -> None:
        super().__init__()
        width = config.encoder_block_out_channels[0]
        layers: list[nn.Module] = []
        for level, blocks in enumerate(config.num_encoder_blocks):
            first = level == 0
            layers.append(
                conv(config.in_channels, width) if first else conv(width, width, 2, bias=False)
            )
            layers += [Block(width) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, conv(width, config.latent_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x + 1) / 2)


class Decoder(nn.Module):
    """Latents (B,4,h,w) → pixels (B,3,8h,8w), about in [-1, 1]."""

    def __init__(self, config: TAESDConfig) -> None:
        super().__init__()
        width, last = config.decoder_block_out_channels[0], len(config.num_decoder_blocks) - 1
        layers: list[nn.Module] = [conv(config.latent_channels, width), nn.ReLU()]
        for level, blocks in enumerate(config.num_decoder_blocks):
            layers += [Block(width) for _ in range(blocks)]
            if level < last:
                layers += [nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
        self.layers = nn.Sequential(*layers, conv(width, config.out_channels))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(torch.tanh(z / CLAMP) * CLAMP) * 2 - 1


class AutoencoderTiny(nn.Module):
    """Encoder and decoder of scaled latents, in the place of an ``AutoencoderKL``.

    Attributes:
        encoder: None if only the decoder was loaded.
    """

    config_class = TAESDConfig
    weight_stem = "diffusion_pytorch_model"

    def __init__(self, config: TAESDConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder | None = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, x: Tensor) -> Tensor:
        """Encode pixels (B,3,H,W) in [-1, 1] to scaled latents (B,4,H/8,W/8); nothing is sampled.

        Raises ArgumentError without an encoder.
        """
        if self.encoder is None:
            raise ArgumentError(DECODER_ALONE)
        return self.encoder(x) * self.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Decode scaled latents (B,4,h,w) to pixels (B,3,8h,8w), about in [-1, 1], not clamped."""
        return self.decoder(z / self.config.scaling_factor)

    @torch.no_grad()
    def preview(self, z: Tensor) -> Tensor:
        """Decode scaled latents to RGB (B,3,8h,8w) in [0, 1], float32 on the CPU."""
        like = next(self.parameters())
        parts = [self.decode(part.to(like)).float().cpu() for part in z.split(1)]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
