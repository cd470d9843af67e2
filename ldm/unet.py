"""The denoising U-Net, with or without a text: (x_t, t, …) → a prediction like x_t.

Sources: Ronneberger et al. 2015 (the U), Ho et al. 2020, appendix B (time, residual blocks),
Rombach et al. 2022, section 3.3 (cross-attention), Dhariwal & Nichol 2021, section 3 (classes,
adaptive group normalisation, residual blocks that resample). Modules are named as in diffusers
checkpoints. Classifiers (``ldm.classes.classifier``) share the blocks on the way down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import BlocksConfig, UNetConfig
from ldm.errors import ArgumentError
from ldm.layers import (
    Context,
    Downsample,
    KeysValues,
    ResnetBlock,
    SpatialAttention,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    timestep_embedding,
)


def resnet_block(
    config: BlocksConfig, in_channels: int, out_channels: int, resample: str | None = None
) -> ResnetBlock:
    """Make a residual block that reads the time embedding."""
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


def attention_block(
    config: BlocksConfig, level: int, groups: int | None, depth: int = 1, only_cross: bool = False
) -> nn.Module:
    """Make the attention of one level: to the text if the model reads one, else among pixels.

    groups: of the normalisation before attention among pixels.
    depth, only_cross: of the attention to the text.
    """
    width, heads = config.block_out_channels[level], config.heads[level]
    if isinstance(config, UNetConfig) and config.cross_attention_dim is not None:
        return SpatialTransformer(
            width,
            heads,
            depth,
            config.cross_attention_dim,
            config.norm_num_groups,
            config.use_linear_projection,
            only_cross,
        )
    return SpatialAttention(width, groups, config.norm_eps, heads)


def downsampler(config: BlocksConfig, level: int) -> nn.Module:
    """Make what halves H and W after a level on the way down: a convolution or a residual block."""
    kind, width = config.down_block_types[level], config.block_out_channels[level]
    if kind.startswith("Resnet") or (
        kind.startswith("Attn") and config.downsample_type == "resnet"
    ):
        return resnet_block(config, width, width, "down")
    return Downsample(width, config.downsample_padding)


def upsampler(config: UNetConfig, level: int) -> nn.Module:
    """Make what doubles H and W after a level on the way up."""
    kind, width = config.up_block_types[-1 - level], config.block_out_channels[level]
    how = config.upsample_type if kind.startswith("Attn") else "conv"
    if how == "resnet" or kind.startswith("Resnet"):
        return resnet_block(config, width, width, "up")
    return Upsample(width)


class UNetBlock(nn.Module):
    """One resolution on the way down or up.

    It consists of residual blocks, each followed by attention if the block's kind has it, then a
    change of resolution in all levels except the last one of a way: the U-Net appends it to
    ``downsamplers`` or ``upsamplers``.
    On the way up each residual block also reads a skip connection, so ``in_channels`` counts both.
    """

    def __init__(
        self,
        config: BlocksConfig,
        level: int,  # 0 is the finest
        kind: str,  # diffusers' name: of down_block_types or up_block_types
        in_channels: list[int],  # of each residual block
        depths: Sequence[int] = (),  # of each attention to the text
    ) -> None:
        super().__init__()
        width = config.block_out_channels[level]
        only_cross = isinstance(config, UNetConfig) and config.crossing[level]
        self.resnets = nn.ModuleList(
            resnet_block(config, channels, width) for channels in in_channels
        )
        self.attentions = nn.ModuleList(
            attention_block(config, level, config.norm_num_groups, depth, only_cross)
            for depth in (depths or [1] * len(in_channels))
            if "Attn" in kind
        )
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()

    def forward(
        self,
        x: Tensor,
        temb: Tensor,
        context: Tensor | Context | None,
        skips: list[Tensor],
        going_up: bool,
        feature: Tensor | None = None,
    ) -> Tensor:
        """Push results to ``skips`` on the way down; pop them from there on the way up.

        feature: of a T2I-Adapter, added on the way down to the last result before the change of
        resolution, of levels without attention to that after it, as in diffusers.
        """
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            if going_up:
                x = torch.cat([x, skips.pop()], dim=1)
            x = resnet(x, temb)
            if attention is not None:
                x = apply_attention(attention, x, context)
            if not going_up:
                skips.append(x)
        if feature is not None and self.attentions:
            x = skips[-1] = x + feature
        for sampler in self.downsamplers:
            x = sampler(x, temb) if isinstance(sampler, ResnetBlock) else sampler(x)
            skips.append(x)
        if feature is not None and not self.attentions:
            x = skips[-1] = x + feature
        for sampler in self.upsamplers:
            size = (skips[-1].shape[2], skips[-1].shape[3])  # odd sizes do not just double
            x = sampler(x, temb, size) if isinstance(sampler, ResnetBlock) else sampler(x, size)
        return x


class UNetMidBlock(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution.

    In some distilled U-Nets, it is one residual block alone.
    """

    def __init__(self, config: BlocksConfig) -> None:
        super().__init__()
        width, groups = config.block_out_channels[-1], config.attn_norm_num_groups
        if groups is None and config.resnet_time_scale_shift == "default":
            groups = config.norm_num_groups
        whole, depth = True, 1
        if isinstance(config, UNetConfig):
            whole, depth = config.mid_block_type != "UNetMidBlock2D", config.mid_depth
        self.resnets = nn.ModuleList(resnet_block(config, width, width) for _ in range(1 + whole))
        self.attentions = nn.ModuleList(
            attention_block(config, -1, groups, depth)
            for _ in range(whole and config.add_attention)
        )

    def forward(self, x: Tensor, temb: Tensor, context: Tensor | Context | None) -> Tensor:
        x = self.resnets[0](x, temb)
        for attention in self.attentions:
            x = apply_attention(attention, x, context)
        for resnet in self.resnets[1:]:
            x = resnet(x, temb)
        return x


def apply_attention(attention: nn.Module, x: Tensor, context: Tensor | Context | None) -> Tensor:
    """Attend to the text if there is one, else among the pixels."""
    return attention(x) if context is None else attention(x, context)


def way_down(config: BlocksConfig) -> tuple[nn.ModuleList, list[int]]:
    """Make the levels down to the coarsest; also return the channels that conv_in and they push."""
    widths, last = config.block_out_channels, config.levels - 1
    blocks, skips = nn.ModuleList(), [widths[0]]
    for level, (width, kind) in enumerate(zip(widths, config.down_block_types, strict=True)):
        before = [widths[max(level - 1, 0)]] + [width] * (config.layers[level] - 1)
        depths = config.down_depths[level] if isinstance(config, UNetConfig) else ()
        block = UNetBlock(config, level, kind, before, depths)
        if level < last:
            block.downsamplers.append(downsampler(config, level))
        blocks.append(block)
        skips += [width] * (config.layers[level] + (level < last))
    return blocks, skips


# What an IP-Adapter gives each transformer block to read beside the text (Ye et al. 2023, eq. 5).
ImagePrompt = Mapping[nn.Module, Sequence[KeysValues]]


class Residuals(NamedTuple):
    """What a ControlNet adds to a U-Net's activations (Zhang et al. 2023, section 3.2)."""

    skips: list[Tensor]  # for conv_in and what each level pushes, finest first
    middle: Tensor | None  # for the middle's output


class UNetEncoder(nn.Module):
    """The half of a U-Net that reads: time and other conditions, the way down, the middle.

    ControlNets are copies of it (``ldm.control.controlnet``).
    """

    mid_block: UNetMidBlock | None

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        temb_channels = 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], temb_channels, config.time_cond_proj_dim)
        self.class_embedding: nn.Module | None = None
        if config.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(widths[0], temb_channels)
        elif config.class_embed_type is None and config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, temb_channels)
        self.add_embedding: TimestepEmbedding | None = None
        added_width = config.projection_class_embeddings_input_dim
        if config.addition_embed_type and added_width is not None:  # UNetConfig needs both
            self.add_embedding = TimestepEmbedding(added_width, temb_channels)
        self.down_blocks, self.skip_channels = way_down(config)
        middle = None if config.mid_block_type is None else UNetMidBlock(config)
        self.register_module("mid_block", middle)

    def encode(
        self,
        x: Tensor,
        temb: Tensor,
        context: Tensor | Context | None,
        hint: Tensor | None = None,
        features: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the middle's output, and the skip connections, finest first.

        hint: (1 or B, first width, h, w), a ControlNet's features of its picture, or None.
        features: see ``UNet.forward``.
        """
        x = self.conv_in(2 * x - 1 if self.config.center_input_sample else x)
        if hint is not None:
            x = x + hint
        skips = [x]
        levels = len(self.down_blocks)
        for block, feature in zip_longest(self.down_blocks, features[:levels]):
            x = block(x, temb, context, skips, going_up=False, feature=feature)
        if self.mid_block is not None:
            x = self.mid_block(x, temb, context)
            for feature in features[levels:]:
                x = x + feature
        return x, skips

    def embed(
        self,
        t: Tensor,
        pooled: Tensor | None,
        time_ids: Tensor | None,
        guidance_scale: Tensor | None,
        class_labels: Tensor | None,
        *,
        dtype: torch.dtype,
        added: Tensor | None = None,
    ) -> Tensor:
        """Embed the time and all other conditions except the text: (B, 4 · first width).

        The embedding is activated, as every residual block reads it. Arguments are ``forward``'s;
        added: (1 or B, 4 · first width), a further embedding, or None.
        Raises ArgumentError for one that is missing.
        """
        config = self.config
        sinusoidal = partial(
            timestep_embedding,
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        time = sinusoidal(t, config.block_out_channels[0]).to(dtype)
        guidance = None
        if config.time_cond_proj_dim is not None:
            # Meng et al. 2023, section 3.1, as Luo et al. 2023 (LCM) count it: w = scale − 1.
            w = 1000 * (required("guidance_scale", guidance_scale) - 1)
            guidance = timestep_embedding(
                w, config.time_cond_proj_dim, flip_sin_to_cos=False, freq_shift=1
            ).to(dtype)
        temb = self.time_embedding(time, guidance)
        if config.class_embed_type == "identity":
            temb = temb + required("class_labels", class_labels).to(dtype)
        elif self.class_embedding is not None:
            labels = required("class_labels", class_labels)
            if config.class_embed_type == "timestep":
                labels = sinusoidal(labels, config.block_out_channels[0]).to(dtype)
            temb = temb + self.class_embedding(labels)
        if self.add_embedding is not None and config.addition_time_embed_dim is not None:
            text = required("pooled", pooled)
            numbers = required("time_ids", time_ids).flatten()
            sizes = sinusoidal(numbers, config.addition_time_embed_dim)
            inputs = torch.cat([text, sizes.view(len(text), -1).to(dtype)], dim=-1)
            temb = temb + self.add_embedding(inputs)
        return F.silu(temb if added is None else temb + added)


class UNet(UNetEncoder):
    """diffusers' ``UNet2DConditionModel`` and, without text, ``UNet2DModel``: by ``UNetConfig``."""

    config_class = UNetConfig
    weight_stem = "diffusion_pytorch_model"

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths, last = config.block_out_channels, config.levels - 1
        skips = list(self.skip_channels)
        self.up_blocks = nn.ModuleList()
        previous = widths[-1]
        for level in reversed(range(config.levels)):
            width = widths[level]
            before = [
                (previous if layer == 0 else width) + skips.pop()
                for layer in range(config.layers[level] + 1)
            ]
            kind, depths = config.up_block_types[last - level], config.up_depths[last - level]
            block = UNetBlock(config, level, kind, before, depths)
            if level > 0:
                block.upsamplers.append(upsampler(config, level))
            self.up_blocks.append(block)
            previous = width

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        guidance_scale: Tensor | None = None,
        class_labels: Tensor | None = None,
        temb: Tensor | None = None,
        residuals: Residuals | None = None,
        features: Sequence[Tensor] = (),
        image_prompt: ImagePrompt | None = None,
    ) -> Tensor:
        """Predict ε, x₀ or v, whichever the network was trained for.

        x: noisy latents or pixels (B, in_channels, h, w) at unit variance; t: times (B,) in
        [0, 1000); context: text states (B, tokens, cross_attention_dim), if it reads a text.
        Returns (B, out_channels, h, w).
        SDXL also needs pooled, the text's one state (B, P), and time_ids (B, 5 or 6): sizes in
        pixels (Podell et al. 2023, section 2.2). LCM needs the guidance_scale (B,) to imitate.
        A class-conditional model needs class_labels: (B,) int64 in [0, num_class_embeds), by
        class_embed_type "timestep" (B,) numbers, "identity" (B, 4 · first width) embeddings.
        temb is the result of ``embed`` for all these except x and context, if it is known already.
        residuals are added to the skip connections and to the middle's output.
        features, each (1 or B, channels, h', w'), are added to the activations of the levels on the
        way down, finest first, and one more to the middle's output (Mou et al. 2023, section 3.3).
        image_prompt is what transformer blocks read beside the context: see
        ``ldm.control.ip_adapter``.
        Raises ArgumentError for an input that is missing, or that the model does not read.
        """
        config = self.config
        check_given("context", context, config.cross_attention_dim is not None)
        check_given("class_labels", class_labels, config.class_conditional)
        if temb is None:
            temb = self.embed(t, pooled, time_ids, guidance_scale, class_labels, dtype=x.dtype)
        text = Context(context, image_prompt) if image_prompt and context is not None else context
        x, skips = self.encode(x, temb, text, features=features)
        if residuals is not None:
            skips = [skip + more for skip, more in zip(skips, residuals.skips, strict=True)]
            x = x if residuals.middle is None else x + residuals.middle
        for block in self.up_blocks:
            x = block(x, temb, text, skips, going_up=True)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def required(name: str, value: Tensor | None) -> Tensor:
    """Return an argument that the model reads; raise ArgumentError if it is missing."""
    if value is None:
        raise ArgumentError(f"{name} is missing, but this U-Net reads it: see its config.json")
    return value


def check_given(name: str, value: Tensor | None, reads: bool) -> None:
    """Raise ArgumentError unless an argument is given exactly if the model reads it."""
    if reads:
        required(name, value)
    elif value is not None:
        raise ArgumentError(f"{name} is given to a U-Net without it: see its config.json")
