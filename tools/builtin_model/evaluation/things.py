"""The separate things in a picture on a plain background: where they are, and each by itself."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from tools.builtin_model.evaluation.colours import edge_colour, from_background, joined_to_edge

SIDE = 64  # pixels at which things are found
ALIKE = 0.035  # distance in OKLab within which a pixel that is joined to the edge is background
# Gaps, in those pixels, over which two parts are one thing: any two, or one much the smaller.
TOUCHING, NEAR = 1.0, 3.0
SMALLER = 0.3  # area of a part (a wisp of steam, a detached wheel) relative to its thing's
SPECK, TRIFLE = 0.002, 0.06  # areas that are no thing: of the picture, of the largest thing
MARGIN = 0.06  # of the longer side, around a thing that is cut out


@dataclass(frozen=True)
class Thing:
    """One connected part of the foreground."""

    mask: np.ndarray  # bool (SIDE, SIDE)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, in shares of the picture's side."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        left, top = float(columns[0]) / SIDE, float(rows[0]) / SIDE
        return left, top, float(columns[-1] + 1) / SIDE, float(rows[-1] + 1) / SIDE

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box: x and y in [0, 1]."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def length(self) -> float:
        """The longer side of the box, in shares of the picture's."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


def find_things(rgb: np.ndarray) -> list[Thing]:
    """Find the things in uint8 sRGB (H, W, 3), largest first; none in an empty picture."""
    small = Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BOX)
    mask = ~joined_to_edge(from_background(np.asarray(small)) < ALIKE)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    parts = sorted((labels == i for i in range(1, count + 1)), key=lambda part: -part.sum())
    # Merging makes things larger, so that farther parts may belong to them: until nothing changes.
    while pair := _one_thing(parts):
        first, second = pair
        parts[first] = parts[first] | parts.pop(second)
        parts.sort(key=lambda part: -part.sum())
    least = max(SPECK * SIDE**2, TRIFLE * parts[0].sum()) if parts else 0
    return [Thing(part) for part in parts if part.sum() >= least]


def _one_thing(parts: list[np.ndarray]) -> tuple[int, int] | None:
    """Return the indices (the larger first) of two parts, sorted by area, that belong together."""
    for i, larger in enumerate(parts[:-1]):
        away = ndimage.distance_transform_edt(~larger)
        for j in range(i + 1, len(parts)):
            small = parts[j].sum() < SMALLER * larger.sum()
            # Neighbours are at a distance of 1, with a gap of 0.
            if away[parts[j]].min() - 1 <= (NEAR if small else TOUCHING):
                return i, j
    return None


def together(things: list[Thing]) -> Thing | None:
    """All of the foreground as if it were one thing."""
    return Thing(np.any([thing.mask for thing in things], axis=0)) if things else None


def cut_out(rgb: np.ndarray, thing: Thing, others: list[Thing]) -> np.ndarray:
    """Cut a square of the uint8 picture (H, W, 3) around the thing, at the picture's size.

    The background's colour goes on beyond the edge, and covers the other things.
    """
    height, width = rgb.shape[:2]
    background = edge_colour(rgb)
    if others:
        rest = np.any([other.mask for other in others], axis=0)
        # Soft outlines go with the things that they surround.
        rest = ndimage.binary_dilation(rest, iterations=2)
        rest &= ~ndimage.binary_dilation(thing.mask, iterations=1)
        hidden = Image.fromarray(rest).resize((width, height))
        rgb = np.where(np.asarray(hidden)[..., None], background, rgb)
    (x, y), half = thing.centre, thing.length * (0.5 + MARGIN)
    corners = (x - half) * width, (y - half) * height, (x + half) * width, (y + half) * height
    # Larger by half on each side than the picture, so that no corner is beyond it.
    padded = np.full((2 * height, 2 * width, 3), background, np.uint8)
    padded[height // 2 : height // 2 + height, width // 2 : width // 2 + width] = rgb
    shift = np.array([width // 2, height // 2] * 2)
    return np.asarray(
        Image.fromarray(padded).resize(
            (width, height), Image.Resampling.BICUBIC, box=tuple(np.array(corners) + shift)
        )
    )
