"""Data sets whose pictures are encoded (JPEG, PNG, …): files, or the bytes of files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ldm.training.data.crops import Size
from ldm.training.data.options import DataOptions
from ldm.training.data.pictures import Pictures
from ldm.training.data.reading import Skipped, decode_picture, stored_size


class EncodedImages(Pictures):
    """Pictures in any format that Pillow reads; a row that cannot be read is skipped."""

    @abstractmethod
    def encoded(self, index: int) -> Path | bytes:
        """Return a row's file, or its bytes. Raises ImageError."""

    def picture(self, index: int, enough: int) -> np.ndarray:
        return decode_picture(
            self.encoded(index), self.row_name(index), self.options.channels or 3, enough
        )

    def shape(self, index: int) -> Size:
        return stored_size(self.encoded(index), self.row_name(index))


@dataclass(frozen=True)
class EncodedRow:
    """A row in memory: an encoded picture, with its caption and label if it has them."""

    name: str  # for messages
    picture: bytes  # of a picture file
    text: str | None = None
    label: int | str | None = None


Captions: TypeAlias = Sequence[str | None]
Labels: TypeAlias = Sequence[int | str | None]


def columns_if_any(captions: Captions, labels: Labels) -> tuple[Captions | None, Labels | None]:
    """Return the captions and labels of rows; None for what no row has."""
    labelled = any(label is not None for label in labels)
    return captions if any(captions) else None, labels if labelled else None


class RowImages(EncodedImages):
    """Rows in memory: a block of a stream, or the rows that a stream holds out."""

    def __init__(
        self,
        name: str,
        options: DataOptions,
        rows: Sequence[EncodedRow],
        classes: Sequence[str],
        skipped: Skipped,
    ) -> None:
        self.rows = rows
        captions, labels = columns_if_any([row.text for row in rows], [row.label for row in rows])
        super().__init__(
            name,
            options,
            len(rows),
            captions=captions,
            labels=labels,
            held_out=np.zeros(len(rows), bool),
            classes=classes,
        )
        self.skipped = skipped

    def encoded(self, index: int) -> bytes:
        return self.rows[index].picture

    def row_name(self, index: int) -> str:
        return self.rows[index].name
