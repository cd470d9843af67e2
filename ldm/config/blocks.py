"""The configuration of the blocks that U-Nets share with classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ldm.config.base import Config, check_choice, check_groups, per_level
from ldm.errors import CheckpointError

# Kinds of block without attention to a text; "{}" is "Down" or "Up".
PLAIN_BLOCKS = ("{}Block2D", "Attn{}Block2D", "Resnet{}sampleBlock2D")
MOST_LAYERS = 100  # in one block
MOST_IN_ALL = 1000  # residual blocks on the way down, and transformer blocks on both ways


@dataclass(frozen=True)
class BlocksConfig(Config):
    """What the levels of U-Nets and of classifiers are made of: see ``ldm.unet``."""

    in_channels: int = 3
    center_input_sample: bool = False  # pixels come in [0, 1]: the network moves them to [-1, 1]
    flip_sin_to_cos: bool = True  # order of the halves of the time embedding
    freq_shift: float = 0
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)  # one level each, /2 between levels
    layers_per_block: int | tuple[int, ...] = 2  # on the way down; on the way up one more
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    downsample_type: str = "conv"  # of AttnDownBlock2D; "resnet": by a residual block
    downsample_padding: int = 1  # of the convolution; 0: right and below only
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"  # "scale_shift": adaptive group normalisation
    dropout: float = 0.0  # in the residual blocks, in training
    attention_head_dim: int | tuple[int, ...] | None = 8  # channels per head; None: one head
    add_attention: bool = True  # in the middle
    # Of the attention there; None: norm_num_groups, or with "scale_shift" no normalisation.
    attn_norm_num_groups: int | None = None

    EXTRA: ClassVar[dict[str, Any]] = {"act_fn": "silu"}
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("silu", "swish"),
        "mid_block_scale_factor": (1,),
        "time_embedding_type": ("positional",),
    }

    def __post_init__(self) -> None:
        check_groups(self.block_out_channels, self.norm_num_groups)
        if self.attn_norm_num_groups is not None:
            check_groups(
                self.block_out_channels[-1:], self.attn_norm_num_groups, "attn_norm_num_groups"
            )
        check_choice(
            "resnet_time_scale_shift", self.resnet_time_scale_shift, ("default", "scale_shift")
        )
        check_choice("downsample_type", self.downsample_type, ("conv", "resnet"))
        if self.downsample_padding not in (0, 1):
            raise CheckpointError(f"downsample_padding is {self.downsample_padding}; expected 0, 1")
        if not 0 <= self.dropout < 1:
            raise CheckpointError(f"dropout is {self.dropout}; expected [0, 1)")
        self.check_blocks()
        self.check_heads()
        if not all(1 <= layers <= MOST_LAYERS for layers in self.layers):
            raise CheckpointError(
                f"layers_per_block is {self.layers_per_block}; expected 1 to {MOST_LAYERS} a level"
            )
        check_total("layers_per_block", sum(self.layers))

    def check_blocks(self) -> None:
        """Raise CheckpointError unless each level has its block, of a kind that there is."""
        check_blocks("down_block_types", self.down_block_types, PLAIN_BLOCKS, self.levels)

    def check_heads(self) -> None:
        """Raise CheckpointError unless heads divide the channels wherever there is attention."""
        size = self.attention_head_dim
        for channels, attends in zip(self.block_out_channels, self.attending, strict=True):
            if (
                attends
                and size is not None
                and (not isinstance(size, int) or size <= 0 or channels % size)
            ):
                raise CheckpointError(
                    f"{channels} channels cannot be split into attention heads of "
                    f"attention_head_dim {size}"
                )

    @property
    def levels(self) -> int:
        """How many resolutions there are."""
        return len(self.block_out_channels)

    @property
    def layers(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down, finest first; on the way up, one more."""
        return per_level(self.layers_per_block, self.levels, "layers_per_block")

    @property
    def attending(self) -> list[bool]:
        """Which levels have attention, finest first; the middle counts with the last."""
        attending = ["Attn" in kind for kind in self.down_block_types]
        return [*attending[:-1], attending[-1] or self.add_attention]

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level, finest first."""
        size = self.attention_head_dim
        assert not isinstance(size, tuple)  # see check_heads
        return tuple(1 if size is None else width // size for width in self.block_out_channels)


def check_total(name: str, total: int) -> None:
    """Raise CheckpointError for more blocks than any network has."""
    if total > MOST_IN_ALL:
        raise CheckpointError(f"{name} makes {total:,} blocks; at most {MOST_IN_ALL:,} work")


def check_blocks(name: str, found: tuple[str, ...], kinds: tuple[str, ...], levels: int) -> None:
    """Raise CheckpointError unless there is one block for each level, of these kinds."""
    if len(found) != levels:
        raise CheckpointError(
            f"{name} has {len(found)} blocks for {levels} levels of block_out_channels"
        )
    way = name.partition("_")[0].capitalize()
    for kind in found:
        check_choice(f"{name}: a block", kind, [one.format(way) for one in kinds])
