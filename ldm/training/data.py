"""Data sets that a command of ``tools/`` has built: pictures with captions, texts with embeddings.

Batches are drawn from a generator that depends only on (seed, step), so a resumed run, or one on
several processes, sees what one uninterrupted process would see.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.errors import ArgumentError


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of everything random in one training step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. Raises ArgumentError where it is missing or broken."""
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError:
        raise ArgumentError(f"{path} does not exist; the README's data command builds it") from None
    except json.JSONDecodeError as error:
        raise ArgumentError(
            f"{path} is not JSON lines ({error}); build the data set again"
        ) from None


class CaptionedImages:
    """A folder with ``images.npy``, uint8 (N,H,W,3), and ``metadata.jsonl``, N rows.

    A row has a ``caption`` and a ``split``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows = read_rows(self.folder / "metadata.jsonl")
        self.images = np.load(self.folder / "images.npy", mmap_mode="r")
        if len(self.rows) != len(self.images):
            raise ArgumentError(
                f"{self.folder}: {len(self.images)} images but {len(self.rows)} rows of metadata; "
                "build it again"
            )

    @cached_property
    def train(self) -> Tensor:
        """Indices of the rows to learn from."""
        return torch.tensor([i for i, row in enumerate(self.rows) if row["split"] == "train"])

    @cached_property
    def held_out(self) -> Tensor:
        """Indices of the rows that training never sees."""
        return torch.tensor([i for i, row in enumerate(self.rows) if row["split"] != "train"])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of ``count`` training rows, (count,), drawn in proportion to their ``weight``."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.train[chosen]

    @cached_property
    def weights(self) -> Tensor:
        """How often each row of ``train`` is drawn, relative to the others (default: 1)."""
        return torch.tensor([float(self.rows[i].get("weight", 1)) for i in self.train.tolist()])

    def pixels(self, indices: Tensor) -> Tensor:
        """Whole pictures: (B,) → float32 (B,3,H,W) in [-1, 1]."""
        return to_pixels(self.images[np.sort(indices.numpy())])

    def crops(self, indices: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Random square crops: (B,) → float32 (B,3,size,size) in [-1, 1], half of them mirrored."""
        height, width = self.images.shape[1:3]
        out = np.empty((len(indices), size, size, 3), np.uint8)
        tops = torch.randint(height - size + 1, (len(indices),), generator=generator).tolist()
        lefts = torch.randint(width - size + 1, (len(indices),), generator=generator).tolist()
        flips = torch.rand(len(indices), generator=generator) < 0.5
        for row, (i, top, left, flip) in enumerate(
            zip(indices.tolist(), tops, lefts, flips.tolist(), strict=True)
        ):
            crop = self.images[i, top : top + size, left : left + size]
            out[row] = crop[:, ::-1] if flip else crop
        return to_pixels(out)


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


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 (B,H,W,3) → float32 (B,3,H,W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
