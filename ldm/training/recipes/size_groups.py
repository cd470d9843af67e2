"""Which size each row of a data set has in a batch, and how the rows of a batch are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.errors import DataError, ImageError
from ldm.training.data import Pictures
from ldm.training.data.buckets import nearest_bucket
from ldm.training.data.crops import Size
from ldm.training.data.joined import WithClassPictures
from ldm.training.data.pictures import draw_places


@dataclass(frozen=True)
class SizeGroup:
    """The training rows whose pictures have one size: those to learn, then class pictures."""

    size: Size  # px
    rows: Tensor  # their indices in the data set, (n,)
    weights: Tensor  # how often each is drawn, relative to the others, (n,)
    instances: int  # how many of them are to learn
    places: Tensor  # of what is encoded in the files, (n,)


def count_instances(data: Pictures) -> int:
    """Return the number of rows to learn, which come before those of class pictures."""
    return data.instances if isinstance(data, WithClassPictures) else len(data)


def class_pictures_of(data: Pictures) -> list[object]:
    """Return the name of the set of class pictures, and their number; [] without any."""
    if not isinstance(data, WithClassPictures):
        return []
    return [data.parts[1].name, len(data.parts[1])]


def assign_sizes(data: Pictures, sizes: Sequence[Size]) -> np.ndarray:
    """Choose the index of each row's size, int32 (N,); -1 for a picture that has none.

    Class pictures have every size; theirs here is of no use.
    """
    bucket = np.zeros(len(data), np.int32)
    if len(sizes) > 1:
        for row in range(count_instances(data)):
            try:
                bucket[row] = nearest_bucket(data.shape(row), sizes)
            except ImageError as error:
                data.skipped.add(data.row_name(row), str(error))
                bucket[row] = -1
    return bucket


def rows_of_sizes(
    data: Pictures, sizes: Sequence[Size], bucket: np.ndarray
) -> list[tuple[Size, Tensor]]:
    """Return the sizes that pictures to learn have, and the rows of each.

    bucket: as ``assign_sizes`` returns it.
    """
    instances = count_instances(data)
    others = np.arange(instances, len(data))
    groups = [np.flatnonzero(bucket[:instances] == i) for i in range(len(sizes))]
    return [
        (size, torch.from_numpy(np.concatenate([rows, others])))
        for size, rows in zip(sizes, groups, strict=True)
        if len(rows)
    ]


def training_groups(
    data: Pictures, rows: Sequence[tuple[Size, Tensor]], readable: Sequence[np.ndarray]
) -> list[SizeGroup]:
    """Return the readable training rows of each size that has some to learn.

    rows: as ``rows_of_sizes`` returns them. readable: bool (n,), for each size.
    Raises DataError where there is nothing to learn, or no class picture.
    """
    weight, train = torch.zeros(len(data)), torch.zeros(len(data), dtype=torch.bool)
    weight[data.train], train[data.train] = data.weights, True
    instances, groups = count_instances(data), []
    for (size, own), known in zip(rows, readable, strict=True):
        places = (torch.from_numpy(known) & train[own]).nonzero()[:, 0]
        chosen = own[places]
        if count := int((chosen < instances).sum()):
            groups.append(SizeGroup(size, chosen, weight[chosen], count, places))
    if not groups:
        raise DataError(
            f"none of the {int((data.train < instances).sum())} training pictures of {data.name} "
            "can be used; the warnings above say why"
        )
    if instances < len(data) and any(group.instances == len(group.rows) for group in groups):
        raise DataError("none of the class pictures can be used; the warnings above say why")
    return groups


def choose(
    groups: Sequence[SizeGroup], count: int, flip: bool, generator: torch.Generator
) -> tuple[SizeGroup, Tensor, Tensor]:
    """Draw the rows of a batch, all of one size: which of a group's, and which are mirrored.

    Where there are several sizes, one is drawn first, in proportion to its pictures to learn. Half
    of the rows, the second, are class pictures, where there are any.
    """
    number = 0
    if len(groups) > 1:
        shares = torch.stack([group.weights[: group.instances].sum() for group in groups])
        number = int(torch.multinomial(shares, 1, generator=generator))
    group, n = groups[number], groups[number].instances
    of_class = count // 2 if n < len(group.rows) else 0
    chosen = draw_places(group.weights[:n], count - of_class, generator)
    if of_class:
        chosen = torch.cat([chosen, n + draw_places(group.weights[n:], of_class, generator)])
    mirrored = torch.zeros(count, dtype=torch.bool)
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
    return group, chosen, mirrored
