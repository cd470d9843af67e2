"""Texts with embeddings, for the text recipe."""

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

    Attributes:
        texts: N strings.
        fields: of what some texts say ("noun 1", "colour 1", …); [] where no text has readings.
        values: kind of field ("colour") → the values that its fields take, sorted.
        says: int64 (N,F), indices into the values; UNKNOWN where nothing is known.
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
        said = [row.get("says", {}) for row in rows]
        self.fields = list(dict.fromkeys(field for says in said for field in says))
        known: dict[str, set[str]] = {kind_of(field): set() for field in self.fields}
        for says in said:
            for field, value in says.items():
                known[kind_of(field)].add(value)
        self.values = {kind: sorted(values) for kind, values in known.items()}
        index = {kind: {v: i for i, v in enumerate(found)} for kind, found in self.values.items()}
        self.says = torch.full((len(rows), len(self.fields)), UNKNOWN)
        for column, field in enumerate(self.fields):
            indices = index[kind_of(field)]
            at = [indices[says[field]] if field in says else UNKNOWN for says in said]
            self.says[:, column] = torch.tensor(at)

    def targets(self, indices: Tensor) -> Tensor:
        """(B,) → float32 (B,E)."""
        return torch.from_numpy(self.embeddings[indices.numpy()]).float()
