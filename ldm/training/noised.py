"""Batches of noised pictures, for models of pixels and for classifiers of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.errors import DataError
from ldm.scheduler import DDPMScheduler
from ldm.training.data import Dataset
from ldm.training.data.dataset import Batch


def noised_batch(
    data: Dataset, scheduler: DDPMScheduler, step: int, count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Training pictures x0 and noise (B,C,h,w), times t (B,), and labels (B,) where there are any.

    x_t = ``scheduler.add_noise(x0, noise, t)``.
    """
    rows = data.batch(step, count, generator)
    noise = torch.randn(rows.pixels.shape, generator=generator)
    batch = {"x0": rows.pixels, "noise": noise, "t": draw_times(scheduler, count, generator)}
    return batch if rows.labels is None else {**batch, "labels": rows.labels}


def draw_times(scheduler: DDPMScheduler, count: int, generator: torch.Generator) -> Tensor:
    """Times of a batch, int64 (count,): one from each of ``count`` equal spans, in random order.

    Each is drawn evenly from all T, and every batch sees every level of noise.
    """
    spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    t = (spread * len(scheduler.ratios)).long()
    return t[torch.randperm(count, generator=generator)]


def held_out_batch(data: Dataset, count: int) -> Batch | None:
    """At most ``count`` held-out rows, spread evenly; None where nothing is held out."""
    rows = data.held_out
    if not len(rows):
        return None
    rows = rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]
    return Batch(data.pixels(rows), data.labels(rows) if data.classes else None, None)


def check_classes(data: Dataset, name: str, why: str) -> list[str]:
    """The names of the classes. Raises DataError where the data set has no labels."""
    if not data.classes:
        raise DataError(
            f"{name} has no labels, {why}; put the pictures of each class into a folder of its "
            "own, or give metadata.jsonl a label in each row"
        )
    return data.classes
