"""The variational autoencoder between pixels (B,3,H,W) and latents (B,4,H/8,W/8).

Sources: Kingma & Welling 2013 (the autoencoder),
Rombach et al. 2022, appendix G (this architecture).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import VAEConfig
from ldm.layers import Downsample, ResnetBlock, SpatialAttention, Upsample

EPS = 1e-6  # of every GroupNorm in the VAE; the U-Net's residual blocks have 1e-5


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z|x) = N(mean, exp(logvar)), elementwise; both (B, latent_channels, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Reparameterise a sample: mean + std·noise (Kingma & Welling 2013, section 2.4)."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Compute KL(q ‖ N(0, I)) in nats for each latent value (appendix B).

        An image's is the sum of its values.
        """
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar)


class Block(nn.Module):
    """Residual blocks at one resolution, then a change of resolution if there is one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        groups: int,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels, groups, EPS)
            for i in range(layers)
        )
        self.downsamplers = nn.ModuleList([Downsample(out_channels, padding=0)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if up else [])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for sampler in (*self.downsamplers, *self.upsamplers):
            x = sampler(x)
        return x


class MidBlock(nn.Module):
    """Residual block, attention over all pixels, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups, EPS) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups, EPS)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """Pixels (B,3,H,W) → moments (B, 2·latent_channels, H/8, W/8)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Block(
                widths[max(i - 1, 0)],
                width,
                config.layers_per_block,
                groups,
                down=i < len(widths) - 1,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) → pixels (B,3,8h,8w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            Block(
                widths[max(i - 1, 0)],
                width,
                config.layers_per_block + 1,
                groups,
                up=i < len(widths) - 1,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Encoder and decoder; ``encode`` and ``decode`` use scaled latents, of about unit variance."""

    config_class = VAEConfig
    weight_stem = "diffusion_pytorch_model"

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        # Latents → rough colours, for Pipeline.preview, which sets it; None if not known.
        self.preview: Callable[[Tensor], Tensor] | None = None

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """Encode pixels (B,3,H,W) in [-1, 1] to q(z|x), *before* scaling, in the module's dtype."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30, 20))

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode pixels (B,3,H,W) in [-1, 1] to scaled latents (B,4,H/8,W/8).

        They are a sample with ``noise``, ε ~ N(0, I) shaped like the latents; without, the mean.
        """
        q = self.posterior(x)
        return (q.mean if noise is None else q.sample(noise)) * self.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Decode scaled latents (B,4,h,w) to pixels (B,3,8h,8w), about in [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(z / self.config.scaling_factor))
