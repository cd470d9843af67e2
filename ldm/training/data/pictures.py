"""The base of the data sets that can be read in any order, whatever their form."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ldm.errors import ArgumentError, DataError, ImageError
from ldm.training.data.crops import (
    Size,
    centre_crop,
    crop,
    images_to_tensor,
    pad,
    resize_picture,
    scaled_size,
)
from ldm.training.data.dataset import PictureBatch
from ldm.training.data.labels import number_labels
from ldm.training.data.options import DataOptions
from ldm.training.data.reading import Cache, Skipped

MULTINOMIAL = 2**24  # torch.multinomial takes no more rows


class Pictures(ABC):
    """A data set whose rows can be read in any order.

    Args:
        name: of the set, for messages.
        rows: their number.
        captions, labels: of each row; None where the set has none.
        held_out: whether each row is kept from training; None keeps ``options.held_out`` rows,
            spread evenly, or where that is None too, a twentieth of them but no more than 256.
        weights: how often each row is drawn, relative to the others; None: equally often.
        same: for each row, what the rows of one picture share: they are held out together. None:
            each row has a picture of its own.
        classes: names of the labels 0, 1, …, unless ``options.classes`` gives others.
    """

    cheap = False  # whether pictures are decoded already, in memory or mapped: no read can fail

    def __init__(
        self,
        name: str,
        options: DataOptions,
        rows: int,
        captions: Sequence[str | None] | None = None,
        labels: Sequence[int | str | None] | np.ndarray | None = None,
        held_out: np.ndarray | None = None,
        weights: Sequence[float] | None = None,
        classes: Sequence[str] = (),
        same: Sequence[object] | None = None,
    ) -> None:
        if not rows:
            raise DataError(f"{name} has no pictures; see the README for the forms of data sets")
        self.name, self.options, self.rows_count = name, options, rows
        self._captions = captions
        self._labels, self.classes = number_labels(name, labels, options.classes or classes)
        numbers = np.arange(rows) if same is None else number_pictures(same)
        if held_out is None:
            held_out = choose_held_out(int(numbers.max()) + 1, options.held_out)[numbers]
        elif same is not None:
            held_out = np.isin(numbers, numbers[held_out])
        self.train = torch.from_numpy(np.flatnonzero(~held_out))
        self._held_out = torch.from_numpy(np.flatnonzero(held_out))
        self._weights = weights
        self.skipped = Skipped(name)
        self._cache = Cache(options.cache)
        self._known = np.full(rows, self.cheap)  # rows whose picture was read before

    def __len__(self) -> int:
        return self.rows_count

    @abstractmethod
    def picture(self, index: int, enough: int) -> np.ndarray:
        """Return a row's picture, uint8 (H,W,C), reduced if both sides keep at least ``enough`` px.

        Raises ImageError, naming it.
        """

    def row_name(self, index: int) -> str:
        """Return the name of a row in messages."""
        return f"{self.name}, row {index}"

    def shape(self, index: int) -> Size:
        """Return the stored (height, width) of a row's picture. Raises ImageError."""
        height, width = self.picture(index, 0).shape[:2]
        return height, width

    def crop_of(self, index: int, size: Size) -> tuple[int, int, int, int, int]:
        """Return a picture's stored height and width, and where ``pixels`` crops it to ``size``.

        The crop's top and left are those in the picture that was resized; the last is the left if
        that was mirrored. Raises ImageError.
        """
        height, width = self.shape(index)
        resized = self._ready(index, size).shape
        top, room = (resized[0] - size[0]) // 2, resized[1] - size[1]
        return height, width, top, room // 2, room - room // 2

    def caption_by_default(self, prompt: str) -> None:
        """Give a caption to each row that has none of its own, instead of its class's name."""
        own = self._captions or [None] * len(self)
        self._captions = [text or prompt for text in own]

    def check_captions(self) -> None:
        """Warn if rows lack a caption: the model is trained on them as on dropped captions."""
        missing = [i for i, text in enumerate(self._captions or ()) if not text]
        if missing:
            warnings.warn(
                f"{len(missing)} of {len(self)} rows of {self.name} have no caption (first: "
                f"{self.row_name(missing[0])}); they are learnt with the empty one",
                stacklevel=3,
            )

    @cached_property
    def weights(self) -> Tensor:
        """How often each row of ``train`` is drawn, relative to the others."""
        if self._weights is None:
            return torch.ones(len(self.train))
        found = torch.tensor([float(self._weights[i]) for i in self.train.tolist()])
        if len(found) and not 0 < float(found.sum()) < torch.inf:
            raise DataError(
                f"the weights of the training rows of {self.name} add up to {float(found.sum())}; "
                "expected a number above 0"
            )
        return found

    @cached_property
    def held_out(self) -> Tensor:
        """Indices of readable rows that training never sees."""
        return self.readable(self._held_out)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the indices of ``count`` training rows, (count,), in proportion to their weights.

        The next readable row replaces one that cannot be read.
        Raises DataError where none can be read, or all rows are held out.
        """
        if not len(self.train):
            raise DataError(
                f"all {len(self)} rows of {self.name} are held out; none is to train on"
            )
        chosen = draw_places(self.weights, count, generator)
        return self.train[chosen] if self.cheap else self.usable(chosen)

    def usable(self, places: Tensor) -> Tensor:
        """Return the rows at places of ``train``; a row that cannot be read gives way to the next.

        Raises DataError where none can be read.
        """
        return torch.tensor([self._stand_in(place) for place in places.tolist()])

    def _stand_in(self, place: int) -> int:
        for step in range(len(self.train)):
            index = int(self.train[(place + step) % len(self.train)])
            if self._read(index):
                return index
        raise DataError(
            f"none of the {len(self.train)} training pictures of {self.name} can be used; "
            f"for example: {next(iter(self.skipped.reasons.values()))}"
        )

    def batch(
        self,
        step: int,
        count: int,
        generator: torch.Generator,
        size: int | Size | None = None,
    ) -> PictureBatch:
        """Draw rows as ``draw`` does, with pictures as ``pixels`` reads them."""
        return self.take(self.draw(count, generator), generator, size)

    def take(
        self, indices: Tensor, generator: torch.Generator, size: int | Size | None = None
    ) -> PictureBatch:
        """Return these rows as a batch: pixels, and labels and captions if the set has any."""
        described = self._captions is not None or self._labels is not None
        return PictureBatch(
            self.pixels(indices, size, generator),
            None if self._labels is None else self.labels(indices),
            self.captions(indices) if described else None,
        )

    def readable(self, indices: Tensor, size: int | Size | None = None) -> Tensor:
        """Return the indices of those rows whose pictures can be read; warns of the others."""
        return indices[[self._read(i, size) for i in indices.tolist()]]

    def _read(self, index: int, size: int | Size | None = None) -> bool:
        if self._known[index]:
            return True
        if self.row_name(index) in self.skipped.reasons:
            return False
        try:
            self._ready(index, self._target(size))
        except ImageError as error:
            self.skipped.add(self.row_name(index), str(error))
            return False
        self._known[index] = True
        return True

    def pixels(
        self,
        indices: Tensor,
        size: int | Size | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Read pictures at one size: (B,) → float32 (B,C,h,w) in [-1, 1].

        With a generator they are cropped and mirrored at random, as the options set; without, their
        centres are cropped. A ``size`` of None is ``options.size``; if that is None too, pictures
        keep their stored size.
        Raises ImageError for a picture that cannot be read, see ``draw`` and ``readable``, and
        ArgumentError for no rows or, without a size, pictures of several.
        """
        if not len(indices):
            raise ArgumentError(f"no rows of {self.name} are asked for; data.held_out may be 0")
        target = self._target(size)
        pictures = [self._ready(i, target) for i in indices.tolist()]
        if target is None:
            target = self._common_size(pictures)
        if generator is None:
            return images_to_tensor(centre_crop(pictures, target))
        random, flip = self.options.crop == "random", self.options.flip
        return images_to_tensor(crop(pictures, target, random, flip, generator))

    def _target(self, size: int | Size | None) -> Size | None:
        size = size or self.options.size
        return (size, size) if isinstance(size, int) else size

    def _ready(self, index: int, target: Size | None) -> np.ndarray:
        """Return a picture that only needs cropping to ``target``."""
        key = index, target
        ready = self._cache.get(key)
        if ready is None:
            options = self.options
            # Twice the size that is needed: the resize after it still sees what it averages.
            enough = 0
            if target is not None and options.resize != 0:
                enough = 2 * max(*target, options.resize or 0)
            ready = self.picture(index, enough)
            if options.pad:
                ready = pad(ready, options.pad)
            if target is not None:
                ready = self._resized(ready, target, index)
            if not self.cheap:
                self._cache.put(key, ready)
        return ready

    def _resized(self, picture: np.ndarray, target: Size, index: int) -> np.ndarray:
        stored = picture.shape[:2]
        small = stored[0] < target[0] or stored[1] < target[1]
        if small and self.options.small == "skip":
            raise ImageError(
                f"{self.row_name(index)} has {stored[1]} × {stored[0]} px, below the crop of "
                f'{target[1]} × {target[0]}; data.small = "enlarge" would take it'
            )
        return resize_picture(picture, scaled_size(stored, target, self.options.resize))

    def _common_size(self, pictures: list[np.ndarray]) -> Size:
        sizes = {picture.shape[:2] for picture in pictures}
        if len(sizes) > 1:
            (h, w), (height, width) = sorted(sizes)[:2]
            raise ArgumentError(
                f"pictures of {self.name} have several sizes, such as {w} × {h} and "
                f"{width} × {height} px; set data.size to the px of a side in a batch"
            )
        return sizes.pop()

    def labels(self, indices: Tensor) -> Tensor:
        """Return the labels of rows: (B,) → int64 (B,). Raises DataError if there are none."""
        if self._labels is None:
            raise DataError(
                f"{self.name} has no labels; give each row of its metadata a label, or put the "
                "pictures into one subfolder per class"
            )
        return self._labels[indices]

    def captions(self, indices: Tensor) -> list[str]:
        """Return each row's caption ("" if it lacks one) or class name: (B,) → B texts.

        Raises DataError where the set has neither.
        """
        if self._captions is not None:
            return [self._captions[i] or "" for i in indices.tolist()]
        if self._labels is None:
            raise DataError(
                f"{self.name} has no captions; give it a metadata.jsonl with file_name and text, "
                "or each picture a .txt file of its name"
            )
        return [self.classes[i] for i in self._labels[indices].tolist()]


def draw_places(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw places in ``weights``, (count,), in proportion to them, with repeats."""
    if len(weights) <= MULTINOMIAL:
        return torch.multinomial(weights, count, replacement=True, generator=generator)
    below = weights.double().cumsum(0)
    return torch.searchsorted(below, torch.rand(count, generator=generator).double() * below[-1])


def choose_held_out(rows: int, held_out: int | None) -> np.ndarray:
    """Choose rows to hold out, bool (rows,), evenly spread; by default a twentieth, at most 256."""
    count = min(rows // 20, 256) if held_out is None else held_out
    chosen = np.zeros(rows, bool)
    if count:
        chosen[np.linspace(0, rows - 1, min(count, rows)).round().astype(int)] = True
    return chosen


def number_pictures(same: Sequence[object]) -> np.ndarray:
    """Return the number of each row's picture, in the order of their first rows, int64 (rows,)."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(one, len(numbers)) for one in same])
