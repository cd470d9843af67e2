"""The scales of a LoRA: one for the U-Net, one for each text encoder. Needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ldm.errors import ArgumentError

Scale = float | Mapping[str, float]  # of all parts, or of each by its name


class TagScale(NamedTuple):
    """The scales in a tag of a prompt: of the text encoders, and of the U-Net."""

    text_encoder: float = 1.0
    unet: float = 1.0

    def plus(self, other: TagScale) -> TagScale:
        """Add up the scales of a LoRA that is named twice."""
        return TagScale(self.text_encoder + other.text_encoder, self.unet + other.unet)


def scales_of_parts(scale: Scale) -> dict[str, float]:
    """Return the scale of each part; a second text encoder has the first one's unless named.

    Raises ArgumentError unless all are finite numbers, of parts that exist.
    """
    from ldm.checkpoints.lora_names import ADAPTED_PARTS  # here: --help needs no names of layers

    if isinstance(scale, Mapping):
        if unknown := set(scale) - set(ADAPTED_PARTS):
            raise ArgumentError(
                f"scale has {min(map(str, unknown))!r}; known are {', '.join(ADAPTED_PARTS)}"
            )
        text = scale.get("text_encoder", 1.0)
        found = {"unet": 1.0, "text_encoder": text, "text_encoder_2": text, **scale}
    else:
        found = dict.fromkeys(ADAPTED_PARTS, scale)
    for value in found.values():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ArgumentError(f"scale is {value}; expected a finite number, such as 0.8")
    return found
