"""The configuration of a T2I-Adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ldm.config.base import Config, check_choice
from ldm.config.unet import UNetConfig
from ldm.errors import CheckpointError

CLASS = "T2IAdapter"  # diffusers' class for it
TYPES = ("full_adapter", "full_adapter_xl", "light_adapter")
LIGHT, XL = TYPES[2], TYPES[1]
MOST_CHANNELS = 64  # of a picture
MOST_LEVELS, MOST_BLOCKS, LARGEST_FACTOR = 8, 64, 64


@dataclass(frozen=True)
class T2IAdapterConfig(Config):
    """diffusers' ``T2IAdapter`` (Mou et al. 2023, section 3.3).

    Attributes:
        in_channels: of the picture.
        channels: of the features at each level, finest first; "light_adapter" has a last level
            more, of as many channels.
        num_res_blocks: of each level.
        downscale_factor: pixels of the picture along a side for each of the finest features.
        adapter_type: "full_adapter" halves the resolution from level to level, "full_adapter_xl"
            before the third one alone, "light_adapter" is a narrower "full_adapter".
    """

    EXTRA: ClassVar[dict[str, Any]] = {"_class_name": CLASS}

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = TYPES[0]

    def __post_init__(self) -> None:
        check_choice("adapter_type", self.adapter_type, TYPES)
        limits = {
            "in_channels": (self.in_channels, MOST_CHANNELS),
            "num_res_blocks": (self.num_res_blocks, MOST_BLOCKS),
            "downscale_factor": (self.downscale_factor, LARGEST_FACTOR),
            "the number of channels": (len(self.channels), MOST_LEVELS),
        }
        for name, (value, most) in limits.items():
            if not 1 <= value <= most:
                raise CheckpointError(f"{name} is {value}; it must be in [1, {most}]")
        least = 4 if self.adapter_type == LIGHT else 1
        if min(self.channels) < least:
            raise CheckpointError(f"channels holds {min(self.channels)}; at least {least} work")

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> T2IAdapterConfig:
        """As ``Config.from_dict``, for a config of this class."""
        check_choice(f"{source}: _class_name", values.get("_class_name", CLASS), (CLASS,))
        found = super().from_dict(values, source)
        assert isinstance(found, cls)
        return found

    @property
    def halves(self) -> tuple[bool, ...]:
        """Whether each level begins by halving the resolution."""
        if self.adapter_type == XL:
            return tuple(level == 2 for level in range(len(self.channels)))
        return tuple(level > 0 for level in range(len(self.widths)))

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of the features, finest first."""
        return self.channels + self.channels[-1:] * (self.adapter_type == LIGHT)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(channels, pixels of the picture along a side for each feature) of each level."""
        factor, found = self.downscale_factor, []
        for width, halved in zip(self.widths, self.halves, strict=True):
            factor *= 1 + halved
            found.append((width, factor))
        return tuple(found)


def unet_places(unet: UNetConfig, scale: int) -> tuple[tuple[int, int], ...]:
    """Return (channels, pixels along a side for each of the activations) where features are added.

    They are those of each level on the way down, then those of the middle; see
    ``UNetBlock.forward``. scale: pixels along a side for each of the latents.
    """
    return tuple(_unet_places(unet, scale))


def _unet_places(unet: UNetConfig, scale: int) -> Iterator[tuple[int, int]]:
    last = unet.levels - 1
    for level, (width, kind) in enumerate(
        zip(unet.block_out_channels, unet.down_block_types, strict=True)
    ):
        after = "Attn" not in kind and level < last  # after the level has halved the resolution
        yield width, scale * 2 ** (level + after)
    yield unet.block_out_channels[-1], scale * 2**last
