"""Sets of the `datasets` library: local parquet files and folders, and sets of the hub."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.errors import ArgumentError, DataError, ImageError, LDMError
from ldm.training.data.encoded import EncodedImages, EncodedRow
from ldm.training.data.folders import HELD_OUT
from ldm.training.data.metadata import IMAGE, LABEL, TEXT, column, first_text
from ldm.training.data.options import DataOptions
from ldm.training.data.parquet import check_tables
from ldm.training.data.reading import MOST_BYTES
from ldm.training.foreign import read_file

if TYPE_CHECKING:
    from datasets import Features

HUB = "hub:"


def import_datasets() -> ModuleType:
    """Import the library. Raises ArgumentError where it is not installed."""
    try:
        import datasets
    except ImportError:
        raise ArgumentError(
            'this data set needs the package datasets: pip install "ldm[train]"'
        ) from None
    return datasets


def is_table(path: Path) -> bool:
    """Whether `datasets` can open a local path: parquet, or a set that it has saved."""
    if path.is_file():
        return path.suffix == ".parquet"
    saved = ("dataset_dict.json", "state.json", "dataset_info.json")
    if any((path / name).exists() for name in saved):
        return True
    return any(path.glob("*.parquet")) or any(path.glob("*/*.parquet"))


def load(name: str, streaming: bool) -> Mapping[str, Any]:
    """Load the splits, by name, of "hub:user/set", "hub:user/set:config" or a local path.

    Raises DataError with the library's reason where it cannot be loaded.
    """
    datasets = import_datasets()
    with damage(f"datasets cannot load {name}"):
        if name.startswith(HUB):
            path, _, config = name.removeprefix(HUB).partition(":")
            return datasets.load_dataset(path, config or None, streaming=streaming)
        local = Path(name)
        check_tables(local)
        if (local / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(local))
        if (local / "state.json").exists():
            return {"train": datasets.load_from_disk(str(local))}
        if local.is_file():
            return datasets.load_dataset("parquet", data_files=str(local), streaming=streaming)
        return datasets.load_dataset(str(local), streaming=streaming)


@contextlib.contextmanager
def damage(problem: str) -> Iterator[None]:
    """Turn errors of `datasets`, the hub's client, Arrow and the network into a DataError."""
    try:
        yield
    except LDMError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{problem}: {reason:.300}") from error


def choose_splits(name: str, splits: Mapping[str, Any], options: DataOptions) -> tuple[str, str]:
    """Return the names of the split to train on and of the one held out ("" for none)."""
    if options.split not in splits:
        raise ArgumentError(
            f"{name} has no split {options.split!r}; set data.split to one of {', '.join(splits)}"
        )
    others = [] if options.held_out is not None else [s for s in HELD_OUT if s in splits]
    return options.split, next((s for s in others if s != options.split), "")


class Columns:
    """Which columns of a table hold pictures, captions and labels, and the classes' names."""

    def __init__(self, name: str, features: Features, options: DataOptions) -> None:
        datasets = import_datasets()
        usual = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
        image = column(features, options.image, (*usual, *IMAGE), name)
        if image is None:
            raise ArgumentError(
                f"{name} has no column of pictures among {', '.join(features)}; set data.image"
            )
        self.name, self.hub = name, name.startswith(HUB)
        self.image = image
        self.text = column(features, options.text, TEXT, name)
        self.label = column(features, options.label, LABEL, name)
        kind = features[self.label] if self.label else None
        self.classes = kind.names if isinstance(kind, datasets.ClassLabel) else []

    def row(self, values: Mapping[str, Any], name: str) -> EncodedRow:
        """Convert one row of the table. Raises DataError for a caption that is no text."""
        text = first_text(values[self.text], name) if self.text else None
        label = values[self.label] if self.label else None
        return EncodedRow(name, self.picture(values), text, label)

    def picture(self, values: Mapping[str, Any]) -> bytes:
        """Return the file of a row's picture; b"", which is unreadable, where it has none.

        A table on this machine may name files beside it, which is warned of; one of the hub may
        not.
        """
        value = values[self.image]
        if isinstance(value, Mapping):
            path = value.get("path")
            if value.get("bytes") is None and isinstance(path, str) and not self.hub:
                warnings.warn(
                    f"{self.name} names picture files instead of holding them; they are read from "
                    "where it says",
                    stacklevel=3,
                )
                with contextlib.suppress(OSError, ValueError):
                    return read_file(Path(path), MOST_BYTES)
            value = value.get("bytes")
        return value if isinstance(value, bytes) else b""


def without_decoding(table: Any, columns: Columns) -> Any:
    """Return the table with encoded pictures, so that a damaged one does not end the run."""
    datasets = import_datasets()
    if isinstance(table.features[columns.image], datasets.Image):
        return table.cast_column(columns.image, datasets.Image(decode=False))
    return table


class TableImages(EncodedImages):
    """A set of the `datasets` library, on the disk. Columns have the usual names or are named.

    A split "test" or "validation" is held out, unless ``options.held_out`` says how many rows of
    the training split shall be.
    """

    def __init__(self, name: str, options: DataOptions | None = None) -> None:
        options = options or DataOptions()
        splits = load(name, streaming=False)
        with damage(f"{name} is damaged"):
            table, held_out = self._rows(name, splits, options)
            columns = Columns(name, table.features, options)
            table.data.validate(full=True)  # Arrow trusts its own files
            captions = self._texts(name, table[columns.text]) if columns.text else None
            labels = table[columns.label][:] if columns.label else None
        super().__init__(
            name,
            options,
            len(table),
            captions=captions,
            labels=labels,
            held_out=held_out,
            classes=columns.classes,
        )
        self.table, self.columns = table.select_columns([columns.image]), columns

    @staticmethod
    def _rows(
        name: str, splits: Mapping[str, Any], options: DataOptions
    ) -> tuple[Any, np.ndarray | None]:
        """Return the columns that count of the rows to train on, and of those held out; which."""
        datasets = import_datasets()
        train, test = choose_splits(name, splits, options)
        table, held_out = splits[train], None
        columns = Columns(name, table.features, options)
        kept = [key for key in (columns.image, columns.text, columns.label) if key]
        table = table.select_columns(kept)
        if test:
            held_out = np.arange(len(table) + len(splits[test])) >= len(table)
            try:
                table = datasets.concatenate_datasets([table, splits[test].select_columns(kept)])
            except ValueError as error:
                raise DataError(
                    f"{name}: the columns of {train} and {test} differ ({error}); set "
                    "data.held_out to the rows of the training split to hold out"
                ) from None
        return without_decoding(table, columns), held_out

    @staticmethod
    def _texts(name: str, values: Iterable[object]) -> list[str | None]:
        return [first_text(value, f"{name}, row {i}") for i, value in enumerate(values)]

    def encoded(self, index: int) -> bytes:
        try:
            content = self.columns.picture(self.table[index])
        except Exception as error:  # of Arrow
            raise ImageError(f"{self.row_name(index)} is damaged ({error})") from None
        if not content:
            column = self.columns.image
            raise ImageError(f"{self.row_name(index)} has no picture in column {column!r}")
        return content


class TableSource:
    """A set of the `datasets` library, from the hub or from local files, never held whole."""

    def __init__(self, name: str, options: DataOptions) -> None:
        splits = load(name, streaming=True)
        with damage(f"{name} is damaged"):
            self._open(name, splits, options)
        self._at = (-1, 0)  # epoch and place of the iterator
        self._rows: Iterator[Mapping[str, object]] = iter(())

    def _open(self, name: str, splits: Mapping[str, Any], options: DataOptions) -> None:
        """Find the columns, and read the rows that are held out."""
        train, test = choose_splits(name, splits, options)
        table = splits[train]
        if table.features is None:  # then only the first rows show them
            table = table._resolve_features()
        columns = Columns(name, table.features, options)
        count = 64 if options.held_out is None else options.held_out
        held_out = splits[test] if test else table
        table = table if test else table.skip(count)
        self.name, self.columns = name, columns
        self.length: int | None = None  # known at its end
        self.classes = tuple(columns.classes)
        self.table = without_decoding(table, columns).shuffle(seed=0, buffer_size=1)
        self.held_out = [
            columns.row(values, f"{name}, held-out row {i}")
            for i, values in enumerate(without_decoding(held_out, columns).take(count))
        ]

    def read(self, epoch: int, start: int, count: int) -> list[EncodedRow]:
        with damage(f"{self.name} is damaged"):
            return self._read(epoch, start, count)

    def _read(self, epoch: int, start: int, count: int) -> list[EncodedRow]:
        if self._at != (epoch, start):
            self.table.set_epoch(epoch)  # another order of the files
            self._rows = iter(self.table.skip(start) if start else self.table)
        rows = list(itertools.islice(self._rows, count))
        self._at = (epoch, start + len(rows))
        return [
            self.columns.row(values, f"{self.name}, row {start + i} of epoch {epoch}")
            for i, values in enumerate(rows)
        ]

    def count(self) -> int:
        """Count the rows of an epoch by reading it to its end."""
        with damage(f"{self.name} is damaged"):
            return sum(1 for _ in self.table)
