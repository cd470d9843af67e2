"""Aspect-ratio buckets: pictures of any proportions in batches of one size each.

As NovelAI and SDXL train (Podell et al. 2023, section 2.3): sides are multiples of some number of
px, the area is about the same in every bucket, each picture goes to the nearest proportions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ldm.errors import ArgumentError
from ldm.training.data.crops import Size


def bucket_sizes(side: int, multiple: int, max_ratio: float = 2.0) -> list[Size]:
    """List the sizes (height, width) of at most side² px, from tall to wide.

    For each width, the largest height that keeps the area; and each size lying on its side.
    Raises ArgumentError where no bucket is possible.
    """
    if multiple < 1 or side % multiple:
        raise ArgumentError(
            f"the size {side} is not a multiple of {multiple} px, as the sides of buckets must be"
        )
    if not max_ratio >= 1:
        raise ArgumentError(f"buckets.max_ratio is {max_ratio}; it must be at least 1")
    sizes = set()
    for width in range(multiple, side + 1, multiple):
        height = side * side // width // multiple * multiple
        if height / width <= max_ratio:
            sizes |= {(height, width), (width, height)}
    return sorted(sizes, key=lambda size: size[1] / size[0])


def nearest_bucket(stored: Size, sizes: Sequence[Size]) -> int:
    """Return the index of the size of the nearest aspect ratio, on a log scale."""
    ratio = math.log(stored[1] / stored[0])
    return min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i][1] / sizes[i][0]) - ratio))
