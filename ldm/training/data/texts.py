"""Texts with embeddings, for the text recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.training.data.metadata import read_rows


class EmbeddedTexts:
    """A folder with ``texts.jsonl`` and ``embeddings.npy``, float16 (N,E), unit length."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.texts = [row["text"] for row in read_rows(folder / "texts.jsonl")]
        self.embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
        if len(self.texts) != len(self.embeddings):
            raise ArgumentError(
                f"{folder}: {len(self.texts)} texts but {len(self.embeddings)} embeddings; "
                "build it again"
            )

    def targets(self, indices: Tensor) -> Tensor:
        """(B,) → float32 (B,E)."""
        return torch.from_numpy(self.embeddings[indices.numpy()]).float()
