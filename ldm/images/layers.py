"""Masks with transparent parts: which pixels of such a layer are drawn anew.

Programs disagree. Strokes on a transparent layer say "draw here", whatever their colour. A picture
with an erased hole says "draw the hole" (as in OpenAI's API, ComfyUI and A1111's web UI). A black
and white mask may have parts that are cut off. These are told apart by the colours, by what covers
the edge of the layer, and by whether it shows the picture that it masks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ldm.errors import ArgumentError

STEADY = 8  # alpha that varies by less is the same everywhere
OPAQUE = 250
NEAR = 32  # colours that differ by less are one
LIKE = 8  # mean difference of two copies of a picture, saved or scaled in different ways
SAMPLED = 1 << 20  # pixels that are looked at, at most
REMEDY = "give a mask without transparency: white is drawn anew, black stays"


def layer_to_mask(layer: Image.Image, name: str, pictures: Sequence[Image.Image]) -> Image.Image:
    """Return the mask, RGB or "L", that a layer (see ``load_layer``) stands for: white is drawn.

    name: of the argument, for messages. pictures: those that the layer may mask, as RGB.
    Raises ArgumentError where the transparency could mean one thing as well as another.
    """
    if layer.mode == "RGB":
        return layer
    alpha = np.asarray(layer.getchannel("A"))
    low, high = int(alpha.min()), int(alpha.max())
    if high < STEADY:
        raise ArgumentError(f"{name} is transparent everywhere, so it marks nothing; {REMEDY}")
    colours = Colours(layer)
    if low >= OPAQUE or high - low < STEADY:
        if low < OPAQUE and colours.one:
            raise ArgumentError(f"{name} has one colour and one transparency; {REMEDY}")
        return layer.convert("RGB")
    unlike = difference_from(layer, pictures)
    if unlike is not None and colours.tell_picture(unlike, fills_edge(layer)):
        return hole(layer)
    if colours.one:
        return strokes_or_hole(layer, name, colours, unlike)
    if colours.neutral:
        return grey_with_alpha(layer, name, colours)
    if fills_edge(layer):
        return noted_hole(layer, name)
    if colours.few:
        return layer.getchannel("A")
    raise ArgumentError(
        f"{name} shows parts of another picture than the image's, so it is unclear whether they or "
        f"the transparent parts are to be drawn; {REMEDY}"
    )


class Colours:
    """The colours of a layer where it is visible."""

    def __init__(self, layer: Image.Image) -> None:
        step = math.ceil(math.sqrt(layer.width * layer.height / SAMPLED))
        pixels = np.asarray(layer)[::step, ::step]
        alpha = pixels[..., 3]
        seen = pixels[alpha >= max(int(alpha.max()) // 2, 1)]
        self.alpha = seen[:, 3].astype(np.int16)
        self.rgb = seen[:, :3].astype(np.int16)
        self.typical = np.median(self.rgb, axis=0)
        self.one = self.share(np.abs(self.rgb - self.typical).max(axis=1) <= NEAR) >= 0.9
        self.neutral = self.share(np.ptp(self.rgb, axis=1) <= NEAR) >= 0.95

    @staticmethod
    def share(which: np.ndarray) -> float:
        """Return the share of True, 0 of none."""
        return float(which.mean()) if len(which) else 0.0

    @property
    def white(self) -> bool:
        """Whether the typical colour is white."""
        return bool(self.typical.min() >= 255 - NEAR)

    @property
    def black(self) -> bool:
        """Whether the typical colour is black."""
        return bool(self.typical.max() <= NEAR)

    def tell_picture(self, unlike: float, fills: bool) -> bool:
        """Whether a layer that is ``unlike`` a picture by at most ``LIKE`` is a copy of it.

        A stroke in the colour of what it covers is like the picture, too: of a layer of one colour,
        the rest must be as in the picture, or it must cover the whole edge as pictures do.
        """
        if not self.one:
            return True
        varies = float(np.abs(self.rgb - self.typical).mean())
        return unlike < varies / 2 or (fills and not (self.white or self.black))

    @property
    def black_and_white(self) -> bool:
        """Whether there is nothing between black and white."""
        grey = self.rgb.mean(axis=1)
        return self.share((grey <= NEAR) | (grey >= 255 - NEAR)) >= 0.95

    @property
    def few(self) -> bool:
        """Whether eight colours make up nearly all, as of brushes."""
        _, counts = np.unique(self.rgb // NEAR, axis=0, return_counts=True)
        return bool(np.sort(counts)[-8:].sum() >= 0.95 * counts.sum())


def strokes_or_hole(
    layer: Image.Image, name: str, colours: Colours, unlike: float | None
) -> Image.Image:
    """Return the mask of a layer of one colour: strokes, or a plain picture with a hole.

    unlike: how far it is from a picture that it looks like; None if it looks like none.
    """
    if not fills_edge(layer) or (colours.white and unlike is None):
        return layer.getchannel("A")
    if not colours.neutral:
        return noted_hole(layer, name)
    raise ArgumentError(
        f"{name} has one colour along its edge and a transparent part inside, and it is unclear "
        f"which of the two is to be drawn; {REMEDY}"
    )


def grey_with_alpha(layer: Image.Image, name: str, colours: Colours) -> Image.Image:
    """Return the mask of a layer of greys: a black and white mask, or one that is also its alpha.

    Where a black and white mask is transparent, nothing is drawn.
    """
    same = np.abs(colours.rgb.mean(axis=1) - colours.alpha) <= NEAR
    if colours.share(same) >= 0.95 and not colours.black_and_white:
        return layer.getchannel("A")
    if colours.black_and_white:
        black = Image.new("RGBA", layer.size, "black")
        return Image.alpha_composite(black, layer).convert("L")
    raise ArgumentError(
        f"{name} has greys and transparent parts, and it is unclear which of the two is the mask; "
        f"{REMEDY}"
    )


def fills_edge(layer: Image.Image) -> bool:
    """Whether a layer is opaque along nearly all of its edge, as pictures are and strokes not."""
    opaque = np.asarray(layer.getchannel("A")) >= OPAQUE
    edge = np.concatenate([opaque[0], opaque[-1], opaque[:, 0], opaque[:, -1]])
    return bool(edge.mean() >= 0.9)


def difference_from(layer: Image.Image, pictures: Sequence[Image.Image]) -> float | None:
    """Return how far the opaque part of a layer is from a picture, of any size, that it looks like.

    The mean absolute difference of the nearest picture; None if it is above ``LIKE``.
    """
    scale = min(1.0, math.sqrt(SAMPLED / (layer.width * layer.height)))
    size = (max(1, round(layer.width * scale)), max(1, round(layer.height * scale)))
    shown = np.asarray(layer.resize(size, Image.Resampling.BOX) if scale < 1 else layer)
    opaque = shown[..., 3] >= OPAQUE
    if not opaque.any():
        return None
    colours = shown[opaque][:, :3].astype(np.int16)
    resized = [picture if picture.size == size else picture.resize(size) for picture in pictures]
    nearest = min(float(np.abs(colours - np.asarray(one)[opaque]).mean()) for one in resized)
    return nearest if nearest <= LIKE else None


def hole(layer: Image.Image) -> Image.Image:
    """Return the mask of what is transparent."""
    return layer.getchannel("A").point(lambda value: 255 - value)


def noted_hole(layer: Image.Image, name: str) -> Image.Image:
    """Return ``hole``, with a warning: the layer does not show the picture that it masks."""
    warnings.warn(
        f"{name} is read as a picture with a hole: what is transparent is drawn anew", stacklevel=2
    )
    return hole(layer)
