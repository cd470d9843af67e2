"""Checks of parquet files before they are read: what is claimed, against what the file can hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.errors import DataError
from ldm.training.data.labels import MOST_CLASSES
from ldm.training.foreign import MOST_LINE, kind_of_file, parse_json, read_file

# Bytes of values for each byte of the file, as the best compression of pictures and captions is far
# from, and what small files may have beyond it.
MOST_GROWTH, ROOM = 1100, 1 << 28
BUFFER = 1 << 16  # bytes of a column that are read at once
BATCH = 1 << 24  # bytes of values that are counted at once
NAMES = ("dataset_info.json", "state.json", "dataset_dict.json")


def check_tables(path: Path) -> None:
    """Check a .parquet file, or those in a folder, and what a folder says of itself.

    Raises DataError for a file that is no regular one, is damaged, or claims more than it can hold.
    """
    folders = [path, *sorted(path.glob("*/"))] if path.is_dir() else []
    tables = [found for folder in folders for found in sorted(folder.glob("*.parquet"))]
    described = [folder / name for folder in folders for name in NAMES]
    for file in [*tables] if folders else [path]:
        try:
            check_parquet(file)
        except Exception as error:  # Arrow raises errors of many types on damaged files
            raise unreadable(file, error) from None
    for file in described:
        try:
            if file.exists():
                check_features(parse_json(read_file(file, MOST_LINE)))
        except (OSError, ValueError) as error:
            raise unreadable(file, error) from None


def unreadable(file: Path, error: Exception) -> DataError:
    """Build the error for a file that cannot be read."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"datasets cannot load {file}: {reason:.300}; get it again")


def check_parquet(path: Path) -> None:
    """Raise ValueError, or an error of Arrow, for a parquet file that cannot be read safely."""
    from pyarrow.parquet import ParquetFile

    if kind := kind_of_file(path):
        raise ValueError(f"it is {kind}, not a file")
    size = path.stat().st_size
    with ParquetFile(path, buffer_size=BUFFER) as file:
        meta, most = file.metadata, MOST_GROWTH * size + ROOM
        if meta.num_rows > size:
            raise ValueError(f"it claims {meta.num_rows:,} rows in {size:,} bytes")
        description = (file.schema_arrow.metadata or {}).get(b"huggingface")
        if description:
            check_features(parse_json(description))
        for group in range(meta.num_row_groups):
            # The first row, for what Arrow checks then: what the footer says of a column would
            # abort the process if it is damaged.
            next(file.iter_batches(1, row_groups=[group]), None)
        claimed = 0
        for chunk in chunks(meta):
            claimed += max(chunk.total_uncompressed_size, 0)
            if not 0 <= chunk.total_compressed_size <= size:
                raise ValueError(f"column {chunk.path_in_schema!r} is larger than the file")
        if claimed > most:
            raise ValueError(f"it claims {claimed:,} bytes of values in {size:,} bytes")
        repeated = {c.path_in_schema for c in chunks(meta) if may_repeat(c, most)}
        for column in sorted(repeated):
            count_values(file, column, most)


def chunks(meta: Any) -> Iterator[Any]:
    """Yield what the footer says of each column of each group of rows."""
    for group in range(meta.num_row_groups):
        if not meta.row_group(group).num_rows:
            continue
        for column in range(meta.num_columns):
            yield meta.row_group(group).column(column)


def may_repeat(chunk: Any, most: int) -> bool:
    """Whether a column's values, repeated by reference, may be more than ``most`` bytes."""
    largest = chunk.num_values * max(chunk.total_uncompressed_size, 0)
    return chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY" and largest > most


def count_values(file: Any, column: str, most: int) -> None:
    """Read a column in small batches. Raises ValueError for more than ``most`` bytes of values."""
    largest = max(c.total_uncompressed_size for c in chunks(file.metadata))
    found = 0
    for batch in file.iter_batches(max(1, BATCH // max(largest, 1)), columns=[column]):
        found += sum(map(decoded_size, batch.columns))
        if found > most:
            raise ValueError(f"column {column!r} has more than {most:,} bytes of values")


def decoded_size(array: Any) -> int:
    """Return the bytes of an array's values, each as often as it stands there."""
    if hasattr(array, "dictionary_decode"):
        array = array.dictionary_decode()
    if hasattr(array.type, "fields"):  # a structure, such as {"bytes", "path"}
        return sum(map(decoded_size, array.flatten()))
    return array.nbytes


def check_features(description: Any) -> None:
    """Raise ValueError for types of columns that name too many classes, or a file of names.

    description: what `datasets` writes of a set, as JSON.
    """
    rest = [description]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            count = one.get("num_classes")
            if count is not None and (type(count) is not int or not 0 <= count <= MOST_CLASSES):
                raise ValueError(f"num_classes is {count!r:.40}; at most {MOST_CLASSES:,} work")
            if one.get("names_file") is not None:
                raise ValueError("it names a file of class names; give the names themselves")
            rest += one.values()
        elif isinstance(one, list):
            rest += one
