"""Rows of JSON beside pictures, and the usual names of their columns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ldm.errors import ArgumentError, DataError

# The usual names, the first that is there counts.
IMAGE = ("image", "img", "jpg", "png", "webp", "jpeg", "pixel_values")
TEXT = ("text", "caption", "captions", "prompt", "txt", "description")
LABEL = ("label", "labels", "fine_label", "cls", "class")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines file. Raises ArgumentError where it is missing or broken."""
    try:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
    except FileNotFoundError:
        raise ArgumentError(f"{path} does not exist; the README's data command builds it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(
            f"{path} is not JSON lines ({error}); build the data set again"
        ) from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ArgumentError(f"{path}, row {number}: {row!r} is not a JSON object")
    return rows


def column(
    known: Iterable[str], chosen: str | None, usual: tuple[str, ...], data: str
) -> str | None:
    """Return the column that an option names, else the first usual one that exists, or None.

    Raises ArgumentError where the set lacks the one that the option names.
    """
    known = list(known)
    if chosen is None:
        return next((name for name in usual if name in known), None)
    if chosen not in known:
        raise ArgumentError(f"{data} has no column {chosen!r}; it has {', '.join(known)}")
    return chosen


def first_text(value: object, row: str) -> str | None:
    """Return a row's caption, or the first of several. Raises DataError for another type."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if value is not None and not isinstance(value, str):
        raise DataError(f"{row}: the caption is {value!r}; expected text")
    return value
