"""Texts with embeddings and readings, for the text recipe.

A reading is what a text describes, field by field: {"noun 1": "car", "colour 1": "red", …}.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.errors import ArgumentError, DataError
from ldm.training.binding_head import UNKNOWN, kind_of
from ldm.training.data.arrays import map_array
from ldm.training.data.metadata import first_text, read_rows
from ldm.training.foreign import check_defaults

FLOATS = (np.float16, np.float32, np.float64)
MOST_FIELDS = 256  # of all readings: each text has a number for each


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
        check_defaults()
        folder = Path(folder)
        rows = read_rows(folder / "texts.jsonl")
        self.texts = [text_of(row, f"{folder}, row {i}") for i, row in enumerate(rows)]
        self.embeddings = map_array(folder / "embeddings.npy")
        if self.embeddings.ndim != 2 or self.embeddings.dtype not in FLOATS or not len(rows):
            raise DataError(
                f"{folder}/embeddings.npy holds {self.embeddings.dtype} of shape "
                f"{self.embeddings.shape}; expected a vector of floats for each text, and a text"
            )
        if len(self.texts) != len(self.embeddings):
            raise ArgumentError(
                f"{folder}: {len(self.texts)} texts but {len(self.embeddings)} embeddings; "
                "build it again"
            )
        readings = [reading_of(row, f"{folder}, row {i}") for i, row in enumerate(rows)]
        self.fields = list(dict.fromkeys(field for reading in readings for field in reading))
        if len(self.fields) > MOST_FIELDS:
            raise DataError(
                f"{folder}: its readings have {len(self.fields):,} fields; at most {MOST_FIELDS} "
                "work"
            )
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


def text_of(row: dict[str, Any], name: str) -> str:
    """Return the text of a row. Raises DataError for a row without one."""
    text = first_text(row.get("text"), name)
    if text is None:
        raise DataError(f"{name} has no text")
    return text


def reading_of(row: dict[str, Any], name: str) -> dict[str, str]:
    """Return the reading of a row's text. Raises DataError for one that is not all strings."""
    reading = row.get("says", {})
    if not isinstance(reading, dict) or not all(isinstance(v, str) for v in reading.values()):
        raise DataError(f'{name}: says is {reading!r:.60}; expected {{"noun 1": "car", …}}')
    return reading
