"""How large the sections' work is: the usual sizes, or tiny ones that show that a section runs.

`python -m tools.bench --tiny` runs every section in seconds, for CI. Its figures mean nothing;
outcomes are compared as always.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ldm.checkpoints.family import Family, read_family
from ldm.config import UNetConfig, VAEConfig

T = TypeVar("T")
VARIABLE = "LDM_BENCH_TINY"  # in the environment, so that processes inherit it
WIDTHS, TEXT = (32, 64, 64, 64), 32  # channels of the levels, and of the text's states


def tiny() -> bool:
    """Whether everything is tiny."""
    return bool(os.environ.get(VARIABLE))


def at(usual: T, small: T) -> T:
    """Return one of two sizes."""
    return small if tiny() else usual


def shared_if_tiny(make: Callable[..., T]) -> Callable[..., T]:
    """Let tiny sections share what a function makes; the usual ones each make their own."""
    kept = functools.cache(make)

    @functools.wraps(make)
    def wrapped(*arguments: object) -> T:
        return (kept if tiny() else make)(*arguments)

    return wrapped


def family(name: str) -> Family:
    """Read a family of ``configs/models``, or make a tiny one of its structure."""
    found = read_family(name)
    if not tiny():
        return found
    texts = tuple(
        replace(
            text,
            config=replace(
                text.config,
                hidden_size=TEXT,
                intermediate_size=2 * TEXT,
                num_hidden_layers=2,
                num_attention_heads=2,
                projection_dim=TEXT,
            ),
        )
        for text in found.texts
    )
    return replace(
        found, unet=tiny_unet(found.unet, len(texts)), vae=tiny_vae(found.vae), texts=texts
    )


def tiny_unet(config: UNetConfig, texts: int) -> UNetConfig:
    """Return the config of a narrow U-Net with the same kinds of blocks."""
    levels = len(config.block_out_channels)
    several = isinstance(config.attention_head_dim, tuple)
    depth = config.transformer_layers_per_block
    added = config.projection_class_embeddings_input_dim
    if added is not None:
        added = TEXT + 6 * (config.addition_time_embed_dim or 0)
    return replace(
        config,
        block_out_channels=WIDTHS[:levels],
        attention_head_dim=(1, 2, 2, 2)[:levels] if several else 2,
        cross_attention_dim=texts * TEXT,
        transformer_layers_per_block=(1,) * levels if isinstance(depth, tuple) else 1,
        projection_class_embeddings_input_dim=added,
    )


def tiny_vae(config: VAEConfig) -> VAEConfig:
    """Return the config of a narrow VAE of the same scale."""
    return replace(config, block_out_channels=(32,) * len(config.block_out_channels))
