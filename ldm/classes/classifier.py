"""The classifier that guides: (x_t, t) → how likely x_t is the noised picture of each class.

Source: Dhariwal & Nichol 2021, section 4.3: the way down of the U-Net, with an attention pool.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.config import ClassifierConfig
from ldm.errors import ArgumentError
from ldm.layers import MultiHeadAttention, TimestepEmbedding, timestep_embedding
from ldm.unet import UNetMidBlock, way_down


class AttentionPool(MultiHeadAttention):
    """Attention of the pixels' mean to all of them and to itself: (B,C,S,S) → (B,out_dim).

    Source: Radford et al. 2021, section 2.4.
    """

    def __init__(self, channels: int, size: int, heads: int, out_dim: int) -> None:
        super().__init__(channels, heads, bias=True, out_dim=out_dim)
        self.positions = nn.Parameter(torch.randn(1 + size**2, channels) / channels**0.5)

    def forward(self, x: Tensor) -> Tensor:
        pixels = rearrange(x, "b c h w -> b (h w) c")
        tokens = torch.cat([pixels.mean(dim=1, keepdim=True), pixels], dim=1) + self.positions
        return self.attend_to(tokens[:, :1], tokens).squeeze(1)


class Classifier(nn.Module):
    """log p(y | x_t) up to a constant, for noised pictures of one size: by ``ClassifierConfig``."""

    config_class = ClassifierConfig
    weight_stem = "diffusion_pytorch_model"

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        self.down_blocks, _ = way_down(config)
        self.mid_block = UNetMidBlock(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], config.norm_eps)
        self.pool = AttentionPool(
            widths[-1], config.pooled_size, config.heads[-1], config.num_classes
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noised pictures (B, in_channels, S, S), times (B,) → logits (B, num_classes).

        S is the config's sample_size, times are in [0, 1000) as in the U-Net that it guides.
        Raises ArgumentError for pictures of another size.
        """
        config = self.config
        size = config.sample_size
        if x.shape[2:] != (size, size):
            raise ArgumentError(
                f"x is of {x.shape[3]}×{x.shape[2]} pixels; "
                f"this classifier only knows pictures of {size}×{size}"
            )
        time = timestep_embedding(
            t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift
        )
        temb = F.silu(self.time_embedding(time.to(x.dtype)))
        x = self.conv_in(2 * x - 1 if config.center_input_sample else x)
        for block in self.down_blocks:
            x = block(x, temb, None, [], going_up=False)
        x = self.mid_block(x, temb, None)
        return self.pool(F.silu(self.conv_norm_out(x)))
