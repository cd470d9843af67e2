"""Precision and recall of pictures by their features (Kynkäänniemi et al. 2019).

A picture is *inside* a set of others if it lies no farther from one of them than that one's k-th
nearest neighbour in its own set. Precision is the share of drawn pictures inside the real ones,
recall the share of real ones inside the drawn.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation import examples
from tools.builtin_model.evaluation.intervals import Interval, bootstrap

NEIGHBOURS = 3  # the paper's
BLOCK = 512  # pictures whose distances are computed at once
PER_NOUN = 2  # real icons of each half and drawn pictures


@dataclass(frozen=True)
class Coverage:
    """Precision and recall with their intervals."""

    precision: float
    recall: float
    precision_interval: Interval
    recall_interval: Interval


def radii(features: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Distance of each of (N, D) to its k-th nearest other one: (N,)."""
    parts = [torch.cdist(part, features) for part in features.split(BLOCK)]
    # The nearest is itself.
    near = [part.topk(neighbours + 1, largest=False).values[:, -1] for part in parts]
    return torch.cat(near)


def inside(points: Tensor, others: Tensor, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Whether each of (N, D) is within the radius of each of (M, D): bool (N, M)."""
    reach = radii(others, neighbours)
    return torch.cat([torch.cdist(part, others) <= reach for part in points.split(BLOCK)]).numpy()


def coverage(drawn: np.ndarray, real: np.ndarray, neighbours: int = NEIGHBOURS) -> Coverage:
    """Precision and recall of features (N, D) against real ones (M, D), N and M above `neighbours`.

    Both grow with the number of pictures: compare figures of the same numbers.
    """
    ours, theirs = torch.from_numpy(drawn).double(), torch.from_numpy(real).double()
    found = {}
    for name, points, others in (("precision", ours, theirs), ("recall", theirs, ours)):
        within = inside(points, others, neighbours)

        def share(rows: np.ndarray, columns: np.ndarray, within: np.ndarray = within) -> float:
            there = np.zeros(within.shape[1], bool)
            there[columns] = True
            return float((within & there).any(1)[rows].mean())

        found[name] = float(within.any(1).mean())
        found[f"{name}_interval"] = bootstrap(share, within.shape, most=1.0)
    return Coverage(**found)


def halves(data: CaptionedImages, nouns: set[str]) -> tuple[list[int], list[int]]:
    """Rows of plain training icons in two halves without a common icon, both of the same nouns.

    Each has at most PER_NOUN icons of a noun, and as many as the other one.
    """
    rows: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for i in examples.plain_rows(data):
        row = data.rows[i]
        if row["noun"] in nouns:
            rows[row["noun"]].setdefault((row["set"], row["icon"]), i)
    rng = np.random.default_rng(0)
    first, second = [], []
    for _, icons in sorted(rows.items()):
        order = rng.permutation(list(icons.values())).tolist()
        each = min(PER_NOUN, len(order) // 2)
        first += order[:each]
        second += order[each : 2 * each]
    return first, second
