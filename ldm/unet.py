"""The denoising U-Net with cross-attention to a text: (x_t, t, context) → a prediction like x_t.

Sources: Ronneberger et al. 2015 (the U), Ho et al. 2020, appendix B (time, residual blocks),
Rombach et al. 2022, section 3.3 (cross-attention).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import UNetConfig
from ldm.layers import (
    Downsample,
    GroupNorm,
    ResnetBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    timestep_embedding,
)


class UNetBlock(nn.Module):
    """One resolution on the way down or up.

    Residual blocks, each followed by a transformer where ``heads`` is given, then a change of
    resolution where there is one.
    On the way up each residual block also reads a skip connection, so ``in_channels`` counts both.
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: list[int],  # of each residual block
        out_channels: int,
        heads: int | None,  # None: a level without attention
        depth: int,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        groups, temb_channels = config.norm_num_groups, 4 * config.block_out_channels[0]
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, out_channels, groups, config.norm_eps, temb_channels)
            for channels in in_channels
        )
        if heads is not None:
            self.attentions = nn.ModuleList(
                SpatialTransformer(
                    out_channels,
                    heads,
                    depth,
                    config.cross_attention_dim,
                    groups,
                    config.use_linear_projection,
                )
                for _ in in_channels
            )
        if down:
            self.downsamplers = nn.ModuleList([Downsample(out_channels, padding=1)])
        if up:
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])

    def forward(
        self, x: Tensor, temb: Tensor, context: Tensor, skips: list[Tensor], going_up: bool
    ) -> Tensor:
        """Going down, results are pushed on ``skips``; going up, they are popped from there."""
        attentions = getattr(self, "attentions", [None] * len(self.resnets))
        for resnet, attention in zip(self.resnets, attentions, strict=True):
            if going_up:
                x = torch.cat([x, skips.pop()], dim=1)
            x = resnet(x, temb)
            if attention is not None:
                x = attention(x, context)
            if not going_up:
                skips.append(x)
        for downsample in getattr(self, "downsamplers", ()):
            x = downsample(x)
            skips.append(x)
        for upsample in getattr(self, "upsamplers", ()):
            x = upsample(x, size=tuple(skips[-1].shape[2:]))  # odd sizes do not just double
        return x


class MidBlock(nn.Module):
    """Residual block, transformer, residual block at the coarsest resolution."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width, groups, temb_channels = (
            config.block_out_channels[-1],
            config.norm_num_groups,
            4 * config.block_out_channels[0],
        )
        self.resnets = nn.ModuleList(
            ResnetBlock(width, width, groups, config.norm_eps, temb_channels) for _ in range(2)
        )
        self.attentions = nn.ModuleList(
            [
                SpatialTransformer(
                    width,
                    config.heads[-1],
                    config.depth[-1],
                    config.cross_attention_dim,
                    groups,
                    config.use_linear_projection,
                )
            ]
        )

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, temb), context)
        return self.resnets[1](x, temb)


class UNet(nn.Module):
    """``UNet2DConditionModel`` of the Stable Diffusion family, sizes by ``UNetConfig``."""

    config_class = UNetConfig
    weight_stem = "diffusion_pytorch_model"

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, heads, depth = config.block_out_channels, config.heads, config.depth
        layers, last = config.layers_per_block, len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], config.time_cond_proj_dim)
        if config.addition_embed_type:
            self.add_embedding = TimestepEmbedding(
                config.projection_class_embeddings_input_dim, 4 * widths[0]
            )

        skips = [widths[0]]  # channels of every tensor that the way up will read
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            before = [widths[max(i - 1, 0)]] + [width] * (layers - 1)
            cross = config.down_block_types[i].startswith("CrossAttn")
            self.down_blocks.append(
                UNetBlock(
                    config, before, width, heads[i] if cross else None, depth[i], down=i < last
                )
            )
            skips += [width] * (layers + (i < last))

        self.mid_block = MidBlock(config)

        self.up_blocks = nn.ModuleList()
        previous = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            before = [(previous if j == 0 else width) + skips.pop() for j in range(layers + 1)]
            cross = config.up_block_types[last - i].startswith("CrossAttn")
            self.up_blocks.append(
                UNetBlock(config, before, width, heads[i] if cross else None, depth[i], up=i > 0)
            )
            previous = width

        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """Predict eps, x₀ or v, whatever the network was trained for.

        x: noisy latents (B, in_channels, h, w) at unit variance; t: times (B,) in [0, 1000);
        context: text states (B, tokens, cross_attention_dim). Returns (B, out_channels, h, w).
        SDXL also needs pooled, the text's one state (B, P), and time_ids (B, 5 or 6): sizes in
        pixels (Podell et al. 2023, section 2.2). LCM needs the guidance_scale (B,) to imitate.
        """
        temb = F.silu(self._embed(t, pooled, time_ids, guidance_scale, x.dtype))
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, temb, context, skips, going_up=False)
        x = self.mid_block(x, temb, context)
        for block in self.up_blocks:
            x = block(x, temb, context, skips, going_up=True)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _embed(
        self,
        t: Tensor,
        pooled: Tensor | None,
        time_ids: Tensor | None,
        guidance_scale: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Time, and whatever else the model is told besides the text: (B, 4 · first width)."""
        config = self.config
        order = {"flip_sin_to_cos": config.flip_sin_to_cos, "freq_shift": config.freq_shift}
        time = timestep_embedding(t, config.block_out_channels[0], **order).to(dtype)
        guidance = None
        if config.time_cond_proj_dim is not None:
            # Meng et al. 2023, section 3.1, as Luo et al. 2023 (LCM) count it: w = scale − 1.
            w = 1000 * (guidance_scale - 1)
            guidance = timestep_embedding(
                w, config.time_cond_proj_dim, flip_sin_to_cos=False, freq_shift=1
            ).to(dtype)
        temb = self.time_embedding(time, guidance)
        if config.addition_embed_type:
            sizes = timestep_embedding(time_ids.flatten(), config.addition_time_embed_dim, **order)
            added = torch.cat([pooled, sizes.view(len(pooled), -1).to(dtype)], dim=-1)
            temb = temb + self.add_embedding(added)
        return temb
