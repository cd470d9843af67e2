"""What recipes use of every data set, and the batches that they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm.training.data.crops import Size


@dataclass(frozen=True)
class PictureBatch:
    """B rows of a data set, with pictures of one size."""

    pixels: Tensor  # float32 (B,C,h,w) in [-1, 1]
    labels: Tensor | None  # int64 (B,), indices into the set's classes; None for a set without any
    captions: list[str] | None  # B texts; None for a set without captions and classes

    @staticmethod
    def join(parts: list[PictureBatch]) -> PictureBatch:
        """Concatenate batches."""
        labels = [part.labels for part in parts if part.labels is not None]
        captions = [part.captions for part in parts if part.captions is not None]
        return PictureBatch(
            torch.cat([part.pixels for part in parts]),
            torch.cat(labels) if len(labels) == len(parts) else None,
            [text for texts in captions for text in texts] if len(captions) == len(parts) else None,
        )


class Dataset(Protocol):
    """A list of rows: each a picture with a caption, a label, both or neither.

    Rows are known by their indices, int64 (B,). Everything random comes from the generators given.
    """

    classes: list[str]  # names of the labels 0, 1, …; [] without labels
    train: Tensor  # indices of the rows to train on; empty for a stream

    @property
    def held_out(self) -> Tensor:
        """Return the indices of readable rows that training never sees."""

    def batch(
        self,
        step: int,
        count: int,
        generator: torch.Generator,
        size: int | Size | None = None,
    ) -> PictureBatch:
        """Return the ``count`` training rows of a step; ``generator`` is that step's.

        size: px of the pictures' sides, or (height, width); None takes ``options.size``.
        """

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the indices of ``count`` readable training rows, (count,), with repeats.

        Raises ArgumentError for a stream, whose rows have no indices.
        """

    def readable(self, indices: Tensor) -> Tensor:
        """Return the indices of those rows whose pictures can be read."""

    def pixels(
        self,
        indices: Tensor,
        size: int | Size | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Read the pictures of rows: (B,) → float32 (B,C,h,w) in [-1, 1].

        With a generator, crops and mirroring are random.
        """

    def labels(self, indices: Tensor) -> Tensor:
        """Return the labels of rows: (B,) → int64 (B,)."""

    def captions(self, indices: Tensor) -> list[str]:
        """Return the captions of rows: (B,) → B texts."""
