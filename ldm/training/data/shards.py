"""WebDataset shards: tar files in which the members of one row follow each other.

000012.jpg, 000012.txt and 000012.json are one row: its picture, its caption, and both caption and
label as a JSON object; 000012.cls is its label.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.errors import DataError, ImageError
from ldm.training.data.encoded import EncodedImages, EncodedRow, columns_if_any
from ldm.training.data.metadata import LABEL, TEXT, as_label, first_text
from ldm.training.data.options import DataOptions
from ldm.training.data.pictures import choose_held_out
from ldm.training.data.reading import check_size, suffixes
from ldm.training.data.tar import tar_members
from ldm.training.foreign import MOST_LINE, parse_json


@dataclass
class Member:
    """One row of a shard: where its parts lie, by the end of their names."""

    shard: Path
    key: str
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)  # end → (offset, size)

    @property
    def name(self) -> str:
        """The row's name in messages."""
        return f"{self.shard}/{self.key}"

    def read(self, end: str) -> bytes:
        """Read a part's content. Raises ImageError where the shard has become unreadable."""
        offset, size = self.parts[end]
        check_size(size, self.name)
        try:
            with self.shard.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise ImageError(f"{self.name}: {error.strerror}") from None

    def read_text(self, end: str) -> bytes:
        """Read a part of at most ``MOST_LINE`` bytes. Raises ValueError for a larger one."""
        if self.parts[end][1] > MOST_LINE:
            raise ValueError(f".{end} has more than {MOST_LINE:,} bytes")
        return self.read(end)

    @property
    def picture(self) -> str:
        """The end of the picture's name."""
        return next(end for end in self.parts if f".{end}".endswith(suffixes()))

    def caption_and_label(self, options: DataOptions) -> tuple[str | None, int | str | None]:
        """Read them from .txt, .cls and .json. Raises DataError for damaged JSON."""
        values: dict[str, Any] = {}
        try:
            if "json" in self.parts:
                values |= parse_json(self.read_text("json"))
            for end in ("txt", "text", "caption", "cls"):
                if end in self.parts:
                    values[end] = self.read_text(end).decode("utf-8").strip()
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.name}: its caption or label is damaged ({error})") from None
        text = next((values[k] for k in (options.text, *TEXT) if k in values), None)
        label = next((values[k] for k in (options.label, *LABEL) if k in values), None)
        return first_text(text, self.name), as_label(label)


def find_shards(name: str) -> list[Path]:
    """List the .tar files of a folder, of a pattern such as "shards/*.tar", or the one file."""
    if Path(name).is_dir():
        return sorted(Path(name).glob("*.tar"))
    paths = glob.glob(name)  # noqa: PTH207 (an absolute pattern, too)
    return sorted(Path(path) for path in paths if path.endswith(".tar"))


def members(shard: Path) -> Iterator[Member]:
    """Yield the rows of a shard, read from its headers. Raises DataError for a truncated shard."""
    row = Member(shard, "")
    try:
        for part in tar_members(shard):
            folder, _, file = part.name.rpartition("/")
            stem, _, end = file.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if key != row.key:
                yield row
                row = Member(shard, key)
            row.parts[end.lower()] = (part.offset, part.size)
    except (ValueError, OSError) as error:
        raise DataError(f"{shard} cannot be read ({error}); get it again") from None
    yield row


def read_index(name: str) -> list[Member]:
    """List the rows with a picture, in the order of shards. Raises DataError if there are none."""
    rows = [
        row
        for shard in find_shards(name)
        for row in members(shard)
        if any(f".{end}".endswith(suffixes()) for end in row.parts)
    ]
    if not rows:
        raise DataError(f"{name} has no shard (.tar) with pictures")
    return rows


class ShardImages(EncodedImages):
    """Local shards, read in any order by an index of their headers."""

    def __init__(self, name: str, options: DataOptions | None = None) -> None:
        options = options or DataOptions()
        self.index = read_index(name)
        described = [row.caption_and_label(options) for row in self.index]
        captions, labels = columns_if_any(*zip(*described, strict=True))
        super().__init__(
            name,
            options,
            len(self.index),
            captions=captions,
            labels=labels,
        )

    def encoded(self, index: int) -> bytes:
        row = self.index[index]
        return row.read(row.picture)

    def row_name(self, index: int) -> str:
        return self.index[index].name


class ShardSource:
    """Local shards as a stream: whole shards in a new order in each epoch."""

    classes: tuple[str, ...] = ()

    def __init__(self, name: str, options: DataOptions) -> None:
        self.options = options
        index = read_index(name)
        out = choose_held_out(len(index), 64 if options.held_out is None else options.held_out)
        self.held_out = [self._row(index[i]) for i in np.flatnonzero(out)]
        self.shards: dict[Path, list[Member]] = {}
        for i in np.flatnonzero(~out):
            self.shards.setdefault(index[i].shard, []).append(index[i])
        self.length = int((~out).sum())

    def _row(self, member: Member) -> EncodedRow:
        text, label = member.caption_and_label(self.options)
        return EncodedRow(member.name, member.read(member.picture), text, label)

    def read(self, epoch: int, start: int, count: int) -> list[EncodedRow]:
        """Read rows ``start`` to ``start + count`` of an epoch, fewer at its end."""
        generator = torch.Generator().manual_seed(epoch)
        shards = list(self.shards.values())
        order = torch.randperm(len(shards), generator=generator).tolist()
        rows = [member for i in order for member in shards[i]]
        return [self._row(member) for member in rows[start : start + count]]

    def count(self) -> int:
        """Return the number of rows of an epoch."""
        return self.length
