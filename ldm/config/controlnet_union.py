"""The configuration of a ControlNet-Union: one ControlNet for pictures of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ldm.config.controlnet import ControlNetConfig
from ldm.errors import ArgumentError, CheckpointError, did_you_mean

# The kinds of pictures, in the order of the published networks (xinsir/controlnet-union-sdxl-1.0;
# the last two of "promax"), with the preprocessors here that draw such pictures.
MODES = ("openpose", "depth", "scribble", "canny", "normal", "segment", "tile", "inpaint")
PREPROCESSED = {"softedge": "scribble", "lineart": "canny"} | {
    name: name for name in ("scribble", "canny", "tile", "inpaint")
}
MOST_LAYERS = 100


@dataclass(frozen=True)
class ControlNetUnionConfig(ControlNetConfig):
    """diffusers' ``ControlNetUnionModel``."""

    CLASSES: ClassVar[tuple[str, ...]] = ("ControlNetUnionModel", "ControlNetModel_Union")

    conditioning_embedding_out_channels: tuple[int, ...] = (48, 96, 192, 384)
    num_control_type: int = 6
    num_trans_channel: int = 320
    num_trans_head: int = 8
    num_trans_layer: int = 1
    num_proj_channel: int = 320

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.addition_time_embed_dim is None:
            raise CheckpointError(
                "addition_time_embed_dim is None; a ControlNet-Union, which is for SDXL, needs it"
            )
        width = self.block_out_channels[0]
        if not self.num_trans_channel == self.num_proj_channel == width:
            raise CheckpointError(
                f"num_trans_channel and num_proj_channel are {self.num_trans_channel} and "
                f"{self.num_proj_channel}; expected {width}, as the first of block_out_channels"
            )
        if not (0 < self.num_control_type <= MOST_LAYERS and self.num_trans_layer <= MOST_LAYERS):
            raise CheckpointError(
                f"num_control_type and num_trans_layer are {self.num_control_type} and "
                f"{self.num_trans_layer}; at most {MOST_LAYERS} are supported"
            )
        if self.controlnet_conditioning_channel_order != "rgb":
            raise CheckpointError("controlnet_conditioning_channel_order is not 'rgb'")


def read_mode(mode: object, count: int) -> int:
    """Return the number of a kind, given by it or by its name, of a network that has ``count``.

    Raises ArgumentError for one that is unknown.
    """
    names = MODES[:count]
    if isinstance(mode, str):
        if mode in names:
            return names.index(mode)
        hint = did_you_mean(mode, list(names)) or f"it has {', '.join(names)}"
        raise ArgumentError(f"control_mode is {mode!r:.40}, which this ControlNet has not; {hint}")
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode < count:
        raise ArgumentError(
            f"control_mode is {mode!r:.40}; this ControlNet has 0 to {count - 1}: {listing(names)}"
        )
    return mode


def listing(names: Sequence[str] = MODES) -> str:
    """List the kinds with their numbers."""
    return ", ".join(f"{number} {name}" for number, name in enumerate(names))
