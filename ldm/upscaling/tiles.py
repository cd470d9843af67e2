"""Pictures in tiles: a network sees a part at a time, so that memory is bounded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

TILE, OVERLAP = 256, 24  # pixels along a side, and around each tile; ESRGAN takes about 1 GB


class Tile(NamedTuple):
    """A part of the enlarged picture, and where it begins there."""

    top: int
    left: int
    pixels: Tensor  # (1, C, h, w)


def upscale_tiles(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    scale: int,
    tile: int | None = TILE,
    overlap: int = OVERLAP,
) -> Iterator[Tile]:
    """Enlarge x (1, C, H, W) part by part; the parts cover the result (1, C, scale H, scale W).

    network: (1, C, h, w) → (1, C, scale h, scale w). tile: at most so many pixels along a side
    become a part; None is all. overlap: pixels around it that the network sees, and whose result
    is cut off: seams vanish if it sees no further.
    """
    rows, columns = (spans(side, tile) for side in x.shape[2:])
    for top, bottom in rows:
        for left, right in columns:
            y, z = max(top - overlap, 0), max(left - overlap, 0)
            part = network(x[:, :, y : bottom + overlap, z : right + overlap])
            own = part[
                ...,
                (top - y) * scale : (bottom - y) * scale,
                (left - z) * scale : (right - z) * scale,
            ]
            yield Tile(top * scale, left * scale, own)


def spans(side: int, tile: int | None) -> list[tuple[int, int]]:
    """Divide a side into parts of nearly one length, at most ``tile``."""
    count = 1 if tile is None else math.ceil(side / tile)
    ends = [side * i // count for i in range(count + 1)]
    return list(itertools.pairwise(ends))
