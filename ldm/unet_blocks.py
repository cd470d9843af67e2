"""The levels of U-Nets and of the classifiers that guide them, named as in diffusers checkpoints.

Sources: Ho et al. 2020, appendix B; with a text Rombach et al. 2022, section 3.3; adaptive group
normalisation and residual blocks that resample, Dhariwal & Nichol 2021, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.config import BlocksConfig, UNetConfig
from ldm.layers import Downsample, ResnetBlock, SpatialAttention, SpatialTransformer, Upsample


def resnet_block(
    config: BlocksConfig, in_channels: int, out_channels: int, resample: str | None = None
) -> ResnetBlock:
    """A residual block that is told the time."""
    return ResnetBlock(
        in_channels,
        out_channels,
        config.norm_num_groups,
        config.norm_eps,
        temb_channels=4 * config.block_out_channels[0],
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
        dropout=config.dropout,
        resample=resample,
    )


def attention_block(config: BlocksConfig, level: int, groups: int | None) -> nn.Module:
    """Attention as one level has it: to a text where the model reads one, else among pixels.

    ``groups`` are of the normalisation among pixels.
    """
    width, heads = config.block_out_channels[level], config.heads[level]
    if isinstance(config, UNetConfig) and config.cross_attention_dim is not None:
        return SpatialTransformer(
            width,
            heads,
            config.depth[level],
            config.cross_attention_dim,
            config.norm_num_groups,
            config.use_linear_projection,
        )
    return SpatialAttention(width, groups, config.norm_eps, heads)


class UNetBlock(nn.Module):
    """One resolution on the way down or up.

    Residual blocks, each followed by attention where the block's kind has it, then a change of
    resolution where there is one.
    On the way up each residual block also reads a skip connection, so ``in_channels`` counts both.
    """

    def __init__(
        self,
        config: BlocksConfig,
        level: int,  # 0 is the finest
        kind: str,  # diffusers' name: of down_block_types or up_block_types
        in_channels: list[int],  # of each residual block
        resample: str | None,  # "down", "up" or not at all
    ) -> None:
        super().__init__()
        width = config.block_out_channels[level]
        self.resnets = nn.ModuleList(
            resnet_block(config, channels, width) for channels in in_channels
        )
        if "Attn" in kind:
            self.attentions = nn.ModuleList(
                attention_block(config, level, config.norm_num_groups) for _ in in_channels
            )
        if resample is None:
            return
        how = getattr(config, f"{resample}sample_type") if kind.startswith("Attn") else "conv"
        if how == "resnet" or kind.startswith("Resnet"):
            sampler: nn.Module = resnet_block(config, width, width, resample)
        elif resample == "down":
            sampler = Downsample(width, config.downsample_padding)
        else:
            sampler = Upsample(width)
        setattr(self, f"{resample}samplers", nn.ModuleList([sampler]))

    def forward(
        self, x: Tensor, temb: Tensor, context: Tensor | None, skips: list[Tensor], going_up: bool
    ) -> Tensor:
        """Going down, results are pushed on ``skips``; going up, they are popped from there."""
        attentions = getattr(self, "attentions", [None] * len(self.resnets))
        for resnet, attention in zip(self.resnets, attentions, strict=True):
            if going_up:
                x = torch.cat([x, skips.pop()], dim=1)
            x = resnet(x, temb)
            if attention is not None:
                x = attend(attention, x, context)
            if not going_up:
                skips.append(x)
        for sampler in getattr(self, "downsamplers", ()):
            x = sampler(x, temb) if isinstance(sampler, ResnetBlock) else sampler(x)
            skips.append(x)
        for sampler in getattr(self, "upsamplers", ()):
            size = tuple(skips[-1].shape[2:])  # odd sizes do not just double
            x = sampler(x, temb, size) if isinstance(sampler, ResnetBlock) else sampler(x, size)
        return x


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, config: BlocksConfig) -> None:
        super().__init__()
        width, groups = config.block_out_channels[-1], config.attn_norm_num_groups
        if groups is None and config.resnet_time_scale_shift == "default":
            groups = config.norm_num_groups
        self.resnets = nn.ModuleList(resnet_block(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList(
            attention_block(config, -1, groups) for _ in range(config.add_attention)
        )

    def forward(self, x: Tensor, temb: Tensor, context: Tensor | None) -> Tensor:
        x = self.resnets[0](x, temb)
        for attention in self.attentions:
            x = attend(attention, x, context)
        return self.resnets[1](x, temb)


def attend(attention: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
    """Attention to the text where there is one, else among the pixels."""
    return attention(x) if context is None else attention(x, context)


def way_down(config: BlocksConfig) -> tuple[nn.ModuleList, list[int]]:
    """The levels down to the coarsest, and the channels of all that they and conv_in push."""
    widths, last = config.block_out_channels, config.levels - 1
    blocks, skips = nn.ModuleList(), [widths[0]]
    for level, (width, kind) in enumerate(zip(widths, config.down_block_types, strict=True)):
        before = [widths[max(level - 1, 0)]] + [width] * (config.layers_per_block - 1)
        resample = "down" if level < last else None
        blocks.append(UNetBlock(config, level, kind, before, resample))
        skips += [width] * (config.layers_per_block + (level < last))
    return blocks, skips
