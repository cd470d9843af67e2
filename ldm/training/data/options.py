"""How a config's data set is read: the table ``[options.data]``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ldm.config.settings import check_values, choice, within
from ldm.errors import ArgumentError, did_you_mean

MOST_SIDE = 16384  # px of a side of a picture in a batch
MOST_ROWS = 1_000_000  # of a shuffle buffer, in memory


def at_least(least: int, default: int | None = None, most: int | None = None) -> Any:
    """Return a field of a whole number from ``least`` on, up to ``most`` if that is given."""
    words = f"a whole number from {least} on{'' if most is None else f', at most {most}'}"
    return within(f"[{least}, {'inf)' if most is None else f'{most}]'}", default, words)


@dataclass(frozen=True)
class DataOptions:
    """How the pictures of a data set are read. Raises ArgumentError for values that cannot work."""

    size: int | None = at_least(1, most=MOST_SIDE)  # px, of a side in a batch; None: as stored
    # px, the shorter side before the crop; None: fits `size`; 0: as stored.
    resize: int | None = at_least(0, most=MOST_SIDE)
    crop: str = choice("centre", "random")  # "random" in training
    flip: bool = False  # half of the pictures mirrored, in training
    small: str = choice("enlarge", "skip")  # what to do with pictures below the crop
    # px, black border up to this size, before all else (MNIST: 28 → 32).
    pad: int | None = at_least(1, most=MOST_SIDE)
    # None: 3 for picture files, those of the array for arrays.
    channels: int | None = choice(None, 1, 3, words="1 (grey) or 3 (RGB)")
    image: str | None = None  # name of a column; None: one of the usual names, here and below
    text: str | None = None
    label: str | None = None
    # Weights of the loss on each picture, white counts and black does not (see masks.py): "alpha",
    # "masklabel", a folder or the name of a column.
    mask: str | None = None
    classes: tuple[str, ...] = ()  # names of the labels 0, 1, …, where the set does not know them
    split: str = "train"  # which split of a `datasets` set to learn from
    held_out: int | None = at_least(0)  # rows kept from training where the set has no such split
    streaming: bool = False  # read in order through a shuffle buffer, for sets beyond the disk
    buffer: int = at_least(1, 1000, MOST_ROWS)  # rows of the shuffle buffer
    cache: int = at_least(0, 512)  # MB of decoded, resized pictures that are kept in memory

    def __post_init__(self) -> None:
        check_values(self, "data.")
        object.__setattr__(self, "classes", tuple(self.classes))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataOptions:
        """Read a table. Raises ArgumentError for unknown keys, offering the nearest known one."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                offer = did_you_mean(key, known, quote=str) or f"known are {', '.join(known)}"
                raise ArgumentError(f"data.{key} is not an option of data sets; {offer}")
        return cls(**values)
