"""The configuration of a ControlNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ldm.config.base import check_choice
from ldm.config.unet import UNetConfig
from ldm.errors import CheckpointError

CLASS = "ControlNetModel"  # diffusers' class for it
MOST_CHANNELS = 64  # of a hint


@dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """diffusers' ``ControlNetModel``: the half of a U-Net with a text, which has no way up.

    ``up_block_types`` mirror the way down; nothing is made of them.
    """

    CLASSES: ClassVar[tuple[str, ...]] = (CLASS,)  # diffusers' name first, then others

    cross_attention_dim: int | None = 1280  # diffusers' default; published files state theirs
    conditioning_channels: int = 3  # of the picture that it reads
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"
    global_pool_conditions: bool = False  # it adds means over all pixels ("shuffle")

    # What a ControlNet has no key for.
    UNET_ONLY: ClassVar[tuple[str, ...]] = (
        "sample_size",
        "out_channels",
        "up_block_types",
        "upsample_type",
        "center_input_sample",
        "dropout",
        "reverse_transformer_layers_per_block",
        "time_cond_proj_dim",
        "downsample_type",
        "add_attention",
        "attn_norm_num_groups",
    )

    def __post_init__(self) -> None:
        if self.cross_attention_dim is None:
            raise CheckpointError("cross_attention_dim is None; a ControlNet reads a text")
        super().__post_init__()
        check_choice(
            "mid_block_type", self.mid_block_type, ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
        )
        name = "controlnet_conditioning_channel_order"
        check_choice(name, self.controlnet_conditioning_channel_order, ("rgb", "bgr"))
        channels = (self.conditioning_channels, *self.conditioning_embedding_out_channels)
        if not self.conditioning_embedding_out_channels or min(channels) < 1:
            raise CheckpointError(
                f"conditioning_channels and conditioning_embedding_out_channels are {channels}; "
                "expected numbers of 1 or more"
            )
        if self.conditioning_channels > MOST_CHANNELS:
            raise CheckpointError(
                f"conditioning_channels is {self.conditioning_channels}; at most {MOST_CHANNELS}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> ControlNetConfig:
        """As ``Config.from_dict``, with the kinds of block on the way down alone."""
        named = values.get("_class_name", cls.CLASSES[0])
        check_choice(f"{source}: _class_name", named, cls.CLASSES)
        values = dict(values)
        down = values.get("down_block_types", cls.down_block_types)
        if isinstance(down, list | tuple):  # other values are an error below
            up = tuple(str(kind).replace("Down", "Up") for kind in reversed(down))
            values["up_block_types"] = up
        depths = values.get("transformer_layers_per_block")
        lists = list | tuple
        if isinstance(depths, lists) and any(isinstance(one, lists) for one in depths):
            values["reverse_transformer_layers_per_block"] = (1,) * len(depths)  # of no way up
        found = super(UNetConfig, cls).from_dict(values, source)
        assert isinstance(found, cls)
        return found

    @classmethod
    def like(cls, unet: UNetConfig, **changes: Any) -> ControlNetConfig:
        """Return the configuration of a ControlNet for a U-Net."""
        values = unet.to_dict() | {"_class_name": cls.CLASSES[0]} | changes
        for name in cls.UNET_ONLY:
            values.pop(name, None)
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        values = {**super().to_dict(), "_class_name": self.CLASSES[0]}
        return {name: value for name, value in values.items() if name not in self.UNET_ONLY}

    @property
    def hint_scale(self) -> int:
        """Pixels of the picture along a side for each of the latents."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)
