"""Connected components of a mask, with diagonal neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ldm.control.preprocessors.arrays import Mask


def connected_components(mask: Mask) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Return where a mask (H, W) is True, as (N,) flat indices, and (N,) numbers of components.

    Each component has the number of its first pixel. Trees of pixels are hooked onto each other and
    flattened (Shiloach & Vishkin 1982), on all pixels at once: a few rounds, however long a line.
    """
    row = mask.shape[1] + 2  # with a margin, no neighbour lies beyond an edge
    padded = np.pad(mask, 1)
    where = np.flatnonzero(padded)
    number = np.full(padded.size, -1, np.int32)
    number[where] = np.arange(len(where), dtype=np.int32)
    pairs = []
    for offset in (1, row - 1, row, row + 1):
        neighbour = number[where + offset]
        (first,) = np.nonzero(neighbour >= 0)
        pairs.append(np.stack([first.astype(np.int32), neighbour[first]]))
    a, b = np.concatenate(pairs, axis=1)
    root = np.arange(len(where), dtype=np.int32)
    while len(a):
        above, below = root[a], root[b]
        np.minimum.at(root, np.maximum(above, below), np.minimum(above, below))
        while not np.array_equal(root, flatter := root[root]):
            root = flatter
        apart = root[a] != root[b]
        a, b = a[apart], b[apart]
    return np.flatnonzero(mask), root
