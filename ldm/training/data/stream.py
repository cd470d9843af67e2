"""Data sets that are read in order: too large to download, or on disks slow at random access.

Rows are shuffled block by block: a block of ``options.buffer`` rows is read and given out in a
random order. So the row at any place of the stream can be found without reading those before it,
and a run resumes at its place without a saved state.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ldm.errors import ArgumentError, DataError
from ldm.training.data.crops import Size
from ldm.training.data.dataset import PictureBatch
from ldm.training.data.encoded import EncodedRow, RowImages
from ldm.training.data.options import DataOptions
from ldm.training.data.reading import Skipped
from ldm.training.data.seeds import step_generator


class Source(Protocol):
    """What a stream reads from: rows in an order that the epoch's number determines."""

    held_out: list[EncodedRow]
    classes: tuple[str, ...]

    @property
    def length(self) -> int | None:
        """Return the rows of an epoch; None where only reading it to its end shows them."""

    def read(self, epoch: int, start: int, count: int) -> list[EncodedRow]:
        """Read rows ``start`` to ``start + count`` of an epoch, fewer at its end."""

    def count(self) -> int:
        """Count the rows of an epoch by reading it."""


class Stream:
    """A data set without indices of its training rows: it has batches by step, and held-out rows.

    ``train`` is empty: no row can be drawn by its index.
    """

    def __init__(self, name: str, options: DataOptions, source: Source) -> None:
        self.name, self.options, self.source = name, options, source
        self.classes = list(options.classes or source.classes)
        self.skipped = Skipped(name)
        self.train = torch.empty(0, dtype=torch.int64)
        self._length = source.length
        self._block: tuple[tuple[int, int], RowImages] | None = None
        self._examples = self._images(source.held_out) if source.held_out else None

    @property
    def held_out(self) -> Tensor:
        """Indices of readable rows that training never sees."""
        if self._examples is None:
            return self.train
        return self._examples.readable(torch.arange(len(self._examples)))

    def readable(self, indices: Tensor) -> Tensor:
        """Return the indices of those held-out rows whose pictures can be read."""
        return self._held_out_rows().readable(indices)

    def pixels(
        self,
        indices: Tensor,
        size: int | Size | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Read the pictures of held-out rows: (B,) → float32 (B,C,h,w) in [-1, 1]."""
        return self._held_out_rows().pixels(indices, size, generator)

    def labels(self, indices: Tensor) -> Tensor:
        """Return the labels of held-out rows: (B,) → int64 (B,)."""
        return self._held_out_rows().labels(indices)

    def captions(self, indices: Tensor) -> list[str]:
        """Return the captions of held-out rows: (B,) → B texts."""
        return self._held_out_rows().captions(indices)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Raise ArgumentError: the rows of a stream have no indices."""
        raise ArgumentError(
            f"{self.name} is a stream, which this recipe cannot draw rows from by number; leave "
            "data.streaming out"
        )

    def batch(
        self,
        step: int,
        count: int,
        generator: torch.Generator,
        size: int | Size | None = None,
    ) -> PictureBatch:
        """Return rows ``step · count`` to ``(step + 1) · count`` of the stream, over all epochs."""
        parts, place, end = [], step * count, (step + 1) * count
        while place < end:
            images, order = self._from(place)
            rows = images.usable(order[: end - place])
            parts.append(images.take(rows, generator, size))
            place += len(rows)
        return PictureBatch.join(parts)

    def _from(self, place: int) -> tuple[RowImages, Tensor]:
        """Return the block that holds a place of the stream, and its rows from there on."""
        epoch, inside = divmod(place, self._length) if self._length else (0, place)
        number, first = divmod(inside, self.options.buffer)
        if self._block is None or self._block[0] != (epoch, number):
            rows = self.source.read(epoch, number * self.options.buffer, self.options.buffer)
            self._block = ((epoch, number), self._images(rows)) if rows else None
        if self._block is None or len(self._block[1]) <= first:  # the epoch ends before this place
            if self._length is None:
                self._length = self.source.count()
                if self._length:
                    return self._from(place)
            raise DataError(f"{self.name} has only {self._length} rows, or none; get it again")
        images = self._block[1]
        order = torch.randperm(len(images), generator=step_generator(epoch, number))
        return images, order[first:]

    def _images(self, rows: list[EncodedRow]) -> RowImages:
        return RowImages(self.name, self.options, rows, self.classes, self.skipped)

    def _held_out_rows(self) -> RowImages:
        if self._examples is None:
            raise ArgumentError(f"{self.name} holds out no rows; set data.held_out to a number")
        return self._examples
