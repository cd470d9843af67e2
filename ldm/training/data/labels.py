"""Labels as data sets give them, numbers or names → numbers 0, 1, … and the classes' names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.errors import DataError

MOST_CLASSES = 1 << 20  # of a data set: each has a name in memory and a row in the network
SHOWN = 12  # names of classes that an error gives


def number_labels(
    data: str, labels: Sequence[int | str | None] | np.ndarray | None, classes: Sequence[str]
) -> tuple[Tensor | None, list[str]]:
    """Return the labels as int64 (N,) and the names of the classes; ``data`` names the data set.

    Without ``classes``, names are sorted, and a number names itself.
    Raises DataError for a row without a label, of an unknown name, or out of range, and for more
    than ``MOST_CLASSES`` classes.
    """
    if labels is None:
        return None, []
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    else:
        labels = list(labels)
        kinds = {type(label) for label in labels}
        if not kinds <= {str} and not kinds <= {int}:
            row = (
                next(i for i, label in enumerate(labels) if type(label) not in (int, str))
                if kinds - {int, str}
                else 0
            )
            raise DataError(
                f"{data}, row {row}: the label is {labels[row]!r:.60}; the labels of a set must be "
                "all whole numbers or all names, one for each row"
            )
        if kinds == {str}:
            return _number_names(data, [str(label) for label in labels], classes)
    most = len(classes) or MOST_CLASSES
    if min(labels) < 0 or max(labels) >= most:
        wrong = next(row for row, label in enumerate(labels) if not 0 <= label < most)
        remedy = "correct it, or give data.classes a name for each label"
        if not classes:
            remedy = "correct it, or use names as labels"
        raise DataError(
            f"{data}, row {wrong}: label {labels[wrong]!s:.40} is not from 0 to {most - 1}; "
            f"{remedy}"
        )
    numbers = torch.as_tensor(np.asarray(labels, np.int64))
    return numbers, list(classes) or [str(i) for i in range(int(numbers.max()) + 1)]


def _number_names(data: str, labels: list[str], classes: Sequence[str]) -> tuple[Tensor, list[str]]:
    names = list(classes) or sorted(set(labels))
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"{data} has {len(names):,} different labels; at most {MOST_CLASSES:,} work: are they "
            "captions? then set data.text to their column, and data.label to another"
        )
    number = {name: i for i, name in enumerate(names)}
    for row, label in enumerate(labels):
        if label not in number:
            raise DataError(
                f"{data}, row {row}: the label {label!r:.60} is not one of the classes "
                f"{', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}; correct it, or "
                "add it to data.classes"
            )
    return torch.tensor([number[label] for label in labels]), names
