"""Texts with embeddings and readings, for the text recipe.

A reading is what a text describes, field by field: {"noun 1": "car", "colour 1": "red", …}.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.training.binding_head import UNKNOWN, kind_of
from ldm.training.data.metadata import read_rows


class EmbeddedTexts:
    """A folder with ``texts.jsonl`` and ``embeddings.npy``, float16 (N,E), unit length.

    A line of ``texts.jsonl`` is {"text": …}, with the text's reading under "says" if it has one.

    Attributes:
        texts: N strings.
        fields: those of all readings ("noun 1", "colour 1", …); [] where no text has a reading.
        values: kind of field ("colour") → the values that its fields take, sorted.
        readings: int64 (N,F), indices into the values; UNKNOWN where a text has none.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        rows = read_rows(folder / "texts.jsonl")
        self.texts = [row["text"] for row in rows]
        self.embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
        if len(self.texts) != len(self.embeddings):
            raise ArgumentError(
                f"{folder}: {len(self.texts)} texts but {len(self.embeddings)} embeddings; "
                "build it again"
            )
        readings = [row.get("says", {}) for row in rows]
        self.fields = list(dict.fromkeys(field for reading in readings for field in reading))
        known: dict[str, set[str]] = {kind_of(field): set() for field in self.fields}
        for reading in readings:
            for field, value in reading.items():
                known[kind_of(field)].add(value)
        self.values = {kind: sorted(values) for kind, values in known.items()}
        index = {kind: {v: i for i, v in enumerate(found)} for kind, found in self.values.items()}
        self.readings = torch.full((len(rows), len(self.fields)), UNKNOWN)
        for column, field in enumerate(self.fields):
            indices = index[kind_of(field)]
            at = [indices[r[field]] if field in r else UNKNOWN for r in readings]
            self.readings[:, column] = torch.tensor(at)

    def targets(self, indices: Tensor) -> Tensor:
        """Return the embeddings of texts: indices (B,) → float32 (B,E)."""
        return torch.from_numpy(self.embeddings[indices.numpy()]).float()
