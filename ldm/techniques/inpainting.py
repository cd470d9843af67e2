"""Keeping a part of a picture while the rest is drawn anew."""

from __future__ import annotations

from torch import Tensor

from ldm.images.inputs import expand
from ldm.samplers import Pair
from ldm.scheduler import CLEAN, Level


class Blend:
    """Puts the known part of a picture back after each step, where the mask is 0.

    Source: Lugmayr et al. 2022 (RePaint), eq. 8, as diffusers does it: with the same ε in all
    steps.
    """

    def __init__(
        self, start: Tensor, eps: Tensor, masks: Tensor, steps: list[Pair], end: Level = CLEAN
    ) -> None:
        self.start, self.eps, self.masks = start, eps, masks
        # Not the level that a step ends at: DDIM's may differ from where the next one begins.
        self.levels = iter([*(level for level, _ in steps[1:]), end])

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        level = next(self.levels)
        known = level.alpha * self.start + level.sigma * self.eps
        return (1 - self.masks) * known + self.masks * x


def paste(drawn: Tensor, pixels: Tensor, masks: Tensor) -> Tensor:
    """Put the bit-identical pixels back into (B, 3, H, W) where the masks (b, 1, H, W) are 0."""
    pixels, masks = expand(pixels, len(drawn)), expand(masks, len(drawn))
    return masks * drawn + (1 - masks) * pixels


def unchanged(x: Tensor, level: Level) -> Tensor:
    """Return x: without inpainting, nothing is done after a step."""
    return x
