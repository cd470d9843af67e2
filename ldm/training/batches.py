"""Batches of noised pictures, for models of pixels and for classifiers of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.errors import DataError
from ldm.scheduler import DDPMScheduler
from ldm.training.data import Dataset
from ldm.training.data.dataset import PictureBatch


def noised_batch(
    data: Dataset, scheduler: DDPMScheduler, step: int, count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw pictures x0 and noise (B,C,h,w), times t (B,), and labels (B,) if the data has any.

    x_t = ``scheduler.add_noise(x0, noise, t)``.
    """
    rows = data.batch(step, count, generator)
    noise = torch.randn(rows.pixels.shape, generator=generator)
    batch = {"x0": rows.pixels, "noise": noise, "t": draw_times(scheduler, count, generator)}
    return batch if rows.labels is None else {**batch, "labels": rows.labels}


def draw_times(
    scheduler: DDPMScheduler,
    count: int,
    generator: torch.Generator,
    logit_mean: float = 0.0,
    logit_std: float | None = None,
) -> Tensor:
    """Draw the times of a batch, int64 (count,): one from each of ``count`` equal shares, shuffled.

    Every batch has every level of noise. All T times are equally likely; or, with ``logit_std``,
    the logit of t / T is normal (Esser et al. 2024, section 3.1): fewer times at the ends, where
    there is little to learn.
    """
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    if logit_std is not None:
        share = torch.sigmoid(logit_mean + logit_std * torch.special.ndtri(share.double()))
    times = len(scheduler.ratios)
    t = (share * times).long().clamp(max=times - 1)
    return t[torch.randperm(count, generator=generator)]


def held_out_batch(data: Dataset, count: int) -> PictureBatch | None:
    """Read at most ``count`` held-out rows, evenly spread; None if nothing is held out."""
    rows = data.held_out
    if not len(rows):
        return None
    rows = rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]
    return PictureBatch(data.pixels(rows), data.labels(rows) if data.classes else None, None)


def check_classes(data: Dataset, name: str, why: str) -> list[str]:
    """Return the names of the classes. Raises DataError where the data set has no labels."""
    if not data.classes:
        raise DataError(
            f"{name} has no labels, {why}; put the pictures of each class into a folder of its "
            "own, or give metadata.jsonl a label in each row"
        )
    return data.classes
