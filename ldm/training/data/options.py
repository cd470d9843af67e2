"""What a config says of its data set: the table ``[options.data]``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any

from ldm.errors import ArgumentError

CHOICES = {"crop": ("centre", "random"), "small": ("enlarge", "skip")}
LEAST = {"size": 1, "resize": 0, "pad": 1, "held_out": 0, "buffer": 1, "cache": 0}


@dataclass(frozen=True)
class DataOptions:
    """How the pictures of a data set are read. Raises ArgumentError for values that cannot work."""

    size: int | None = None  # px, the sides of a picture in a batch; None: as stored
    resize: int | None = None  # px, the shorter side before the crop; None: fits `size`; 0: as is
    crop: str = "centre"  # or "random", in training
    flip: bool = False  # half of the pictures mirrored, in training
    small: str = "enlarge"  # what to do with pictures below the crop: "enlarge" or "skip"
    pad: int | None = None  # px, black border up to this size, before all else (MNIST: 28 → 32)
    channels: int | None = None  # 3 or 1 (grey); None: 3 for picture files, as stored in arrays
    image: str | None = None  # name of a column; None: one of the usual names, here and below
    text: str | None = None
    label: str | None = None
    classes: tuple[str, ...] = ()  # names of the labels 0, 1, …, where the set does not know them
    split: str = "train"  # which split of a `datasets` set to learn from
    held_out: int | None = None  # rows kept from training where the set has no such split
    streaming: bool = False  # read in order through a shuffle buffer, for sets beyond the disk
    buffer: int = 1000  # rows of the shuffle buffer
    cache: int = 512  # MB of decoded, resized pictures that are kept in memory

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                expected = " or ".join(map(repr, choices))
                raise ArgumentError(f"data.{name} is {getattr(self, name)!r}; expected {expected}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ArgumentError(
                    f"data.{name} is {value!r}; it must be a whole number from {least} on"
                )
        for name in ("flip", "streaming"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"data.{name} is {getattr(self, name)!r}; expected true, false")
        if self.channels not in (None, 1, 3):
            raise ArgumentError(f"data.channels is {self.channels!r}; expected 1 (grey) or 3 (RGB)")
        object.__setattr__(self, "classes", tuple(self.classes))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataOptions:
        """Read a table. Raises ArgumentError for unknown keys, offering the nearest known one."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                offer = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise ArgumentError(f"data.{key} is not an option of data sets; {offer}")
        return cls(**values)
