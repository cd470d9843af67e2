"""The configuration of an IP-Adapter; files have none, so it is read off the shapes in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ldm.config.base import Config, check_choice
from ldm.config.unet import UNetConfig
from ldm.errors import CheckpointError

KINDS = ("base", "plus", "full")
HEAD_DIM = 64  # of a resampler's attention
# What each kind reads of the picture: one state for all, or the states of all patches.
READS_PATCHES = {"base": False, "plus": True, "full": True}
STYLE, LAYOUT = "up_blocks.0.attentions.1", "down_blocks.2.attentions.1"  # of SDXL (InstantStyle)


@dataclass(frozen=True)
class IPAdapterConfig(Config):
    """An IP-Adapter: how it turns a picture into tokens, and the cross-attentions that read them.

    Attributes:
        kind: "base" makes ``num_tokens`` of the picture's one embedding by a linear layer, "plus"
            by a resampler of all patches' states; "full" makes one of each patch's state.
        image_width: of the embedding ("base": the encoder's projection_dim) or of the states (its
            hidden_size).
        layer_widths: of the U-Net's cross-attentions: on the way down, up, in the middle.
        hidden_size, num_heads, num_layers: of the resampler.
    """

    kind: str = "base"
    image_width: int = 1024
    cross_attention_dim: int = 768
    layer_widths: tuple[int, ...] = ()
    num_tokens: int = 4
    hidden_size: int = 768
    num_heads: int = 12
    num_layers: int = 4

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        numbers = (self.image_width, self.cross_attention_dim, self.num_tokens, *self.layer_widths)
        if not self.layer_widths or min(numbers) < 1:
            raise CheckpointError(
                f"layer_widths is {self.layer_widths}, image_width {self.image_width} and "
                f"num_tokens {self.num_tokens}; expected numbers of 1 or more"
            )

    @property
    def reads_patches(self) -> bool:
        """Whether it reads the states of all patches, not the picture's one embedding."""
        return READS_PATCHES[self.kind]

    @classmethod
    def like(cls, unet: UNetConfig, **values: Any) -> IPAdapterConfig:
        """Return the configuration of an adapter for a U-Net. Raises CheckpointError without text.

        values: the other fields.
        """
        if unet.cross_attention_dim is None:
            raise CheckpointError("an IP-Adapter needs a U-Net that reads a text")
        own: dict[str, Any] = {
            "cross_attention_dim": unet.cross_attention_dim,
            "layer_widths": cross_attention_widths(unet),
        }
        return cls(**own | values)


def cross_attention_widths(unet: UNetConfig) -> tuple[int, ...]:
    """Return the width of each cross-attention, in the order of IP-Adapters' files.

    That is diffusers' order of a U-Net's parts: the way down, the way up, the middle.
    """
    widths = unet.block_out_channels
    middle = unet.mid_depth if unet.mid_block_type == "UNetMidBlock2DCrossAttn" else 0
    pairs = [
        *zip(widths, unet.down_depths, strict=True),
        *zip(widths[::-1], unet.up_depths, strict=True),
        (widths[-1], (middle,)),
    ]
    return tuple(width for width, depths in pairs for _ in range(sum(depths)))
