"""Pictures to learn, and behind them pictures of their class, as one data set (DreamBooth)."""

from __future__ import annotations

import numpy as np
import torch

from ldm.training.data.crops import Size
from ldm.training.data.pictures import Pictures


class WithClassPictures(Pictures):
    """The rows of two data sets: of the pictures to learn, then of those of their class.

    Class pictures are never held out.

    Attributes:
        instances: the number of the first ones.
    """

    def __init__(self, data: Pictures, class_pictures: Pictures) -> None:
        self.parts, self.instances = (data, class_pictures), len(data)
        self.cheap = data.cheap and class_pictures.cheap
        held_out = np.ones(len(data) + len(class_pictures), bool)
        held_out[data.train.numpy()] = False
        held_out[len(data) :] = False
        captions = [part.captions(torch.arange(len(part))) for part in self.parts]
        weights = [*np.zeros(len(data)), *np.ones(len(class_pictures))]
        for part, begin in ((data, 0), (class_pictures, len(data))):
            for row, weight in zip(part.train.tolist(), part.weights.tolist(), strict=True):
                weights[begin + row] = weight
        super().__init__(
            data.name,
            data.options,
            len(held_out),
            captions=[*captions[0], *captions[1]],
            held_out=held_out,
            weights=weights,
        )
        self.skipped = data.skipped

    def _part(self, index: int) -> tuple[Pictures, int]:
        """Return the data set of a row, and the row's index there."""
        part = index >= self.instances
        return self.parts[part], index - part * self.instances

    def picture(self, index: int, enough: int) -> np.ndarray:
        part, row = self._part(index)
        return part.picture(row, enough)

    def shape(self, index: int) -> Size:
        part, row = self._part(index)
        return part.shape(row)

    def row_name(self, index: int) -> str:
        part, row = self._part(index)
        return part.row_name(row)
