"""What a recipe needs of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm.training.data.crops import Size


@dataclass(frozen=True)
class Batch:
    """Rows of a data set, as a recipe takes them."""

    pixels: Tensor  # float32 (B,C,h,w) in [-1, 1]
    labels: Tensor | None  # int64 (B,); None where the set has none
    captions: list[str] | None

    @staticmethod
    def join(parts: list[Batch]) -> Batch:
        """One batch after the other."""
        labels = [part.labels for part in parts if part.labels is not None]
        captions = [part.captions for part in parts if part.captions is not None]
        return Batch(
            torch.cat([part.pixels for part in parts]),
            torch.cat(labels) if len(labels) == len(parts) else None,
            [text for texts in captions for text in texts] if len(captions) == len(parts) else None,
        )


class Dataset(Protocol):
    """Rows, each a picture with a label, a caption, both or neither. Random only by generators."""

    classes: list[str]  # names of the labels 0, 1, …; [] where there are none
    train: Tensor  # indices of the rows to learn from

    @property
    def held_out(self) -> Tensor:
        """Return the indices of readable rows that training never sees."""

    def batch(
        self,
        step: int,
        count: int,
        generator: torch.Generator,
        size: int | Size | None = None,
    ) -> Batch:
        """The training rows of a step; the generator is that step's."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of ``count`` readable training rows, (count,), with repeats. Not of a stream."""

    def readable(self, indices: Tensor) -> Tensor:
        """Those of the rows whose pictures can be used."""

    def pixels(
        self,
        indices: Tensor,
        size: int | Size | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B,) → float32 (B,C,h,w) in [-1, 1]."""

    def labels(self, indices: Tensor) -> Tensor:
        """(B,) → int64 (B,)."""

    def captions(self, indices: Tensor) -> list[str]:
        """(B,) → B texts."""
