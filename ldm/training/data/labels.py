"""Labels as data sets give them, numbers or names → numbers 0, 1, … and the classes' names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.errors import DataError


def number_labels(
    data: str, labels: Sequence[int | str | None] | np.ndarray | None, classes: Sequence[str]
) -> tuple[Tensor | None, list[str]]:
    """Return the labels as int64 (N,) and the names of the classes; ``data`` names the data set.

    Without ``classes``, names are sorted, and a number names itself.
    Raises DataError for a row without a label, of an unknown name, or out of range.
    """
    if labels is None:
        return None, []
    if not isinstance(labels, np.ndarray):
        labels = list(labels)
        kinds = {type(label) for label in labels}
        if not kinds <= {str} and not kinds <= {int}:
            row = (
                next(i for i, label in enumerate(labels) if type(label) not in (int, str))
                if kinds - {int, str}
                else 0
            )
            raise DataError(
                f"{data}, row {row}: the label is {labels[row]!r}; the labels of a set must be "
                "all whole numbers or all names, one for each row"
            )
        if kinds == {str}:
            return _number_names(data, [str(label) for label in labels], classes)
    numbers = torch.as_tensor(np.asarray(labels, np.int64))
    names = list(classes) or [str(i) for i in range(int(numbers.max()) + 1)]
    wrong = ((numbers < 0) | (numbers >= len(names))).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{data}, row {row}: label {int(numbers[row])} is not from 0 to {len(names) - 1}; "
            "correct it, or give data.classes a name for each label"
        )
    return numbers, names


def _number_names(data: str, labels: list[str], classes: Sequence[str]) -> tuple[Tensor, list[str]]:
    names = list(classes) or sorted(set(labels))
    number = {name: i for i, name in enumerate(names)}
    for row, label in enumerate(labels):
        if label not in number:
            raise DataError(
                f"{data}, row {row}: the label {label!r} is not one of the classes "
                f"{', '.join(names)}; correct it, or add it to data.classes"
            )
    return torch.tensor([number[label] for label in labels]), names
