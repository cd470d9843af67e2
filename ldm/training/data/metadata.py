"""Rows of JSON or .csv beside pictures, and the usual names of their columns."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ldm.errors import ArgumentError, DataError

# The usual names, the first that is there counts.
FILE = ("file_name", "filename", "file", "image", "image_path", "img_path", "path", "img")
IMAGE = ("image", "img", "jpg", "png", "webp", "jpeg", "pixel_values")
TEXT = ("text", "caption", "captions", "prompt", "txt", "description")
LABEL = ("label", "labels", "fine_label", "cls", "class")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines or .csv file.

    Raises ArgumentError where it is missing or broken, naming the row.
    """
    try:
        with path.open(encoding=encoding_of(path), newline="") as file:
            rows = _csv(path, file) if path.suffix == ".csv" else _json_lines(path, file)
    except FileNotFoundError:
        raise ArgumentError(f"{path} does not exist; the README's data command builds it") from None
    except (UnicodeError, csv.Error) as error:
        raise ArgumentError(
            f"{path} cannot be read ({error}); check its quotes, and save it as UTF-8"
        ) from None
    return rows


def encoding_of(path: Path) -> str:
    """Return a text file's encoding: UTF-8, unless its first bytes say UTF-16; marks are left out.

    Editors on Windows write such marks.
    """
    with path.open("rb") as file:
        begin = file.read(2)
    return "utf-16" if begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _json_lines(path: Path, file: Iterable[str]) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in file if line.strip()]
    except (json.JSONDecodeError, RecursionError) as error:
        raise ArgumentError(
            f"{path} is not JSON lines ({error}); build the data set again"
        ) from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ArgumentError(f"{path}, row {number}: {row!r} is not a JSON object")
    return rows


def _csv(path: Path, file: Iterable[str]) -> list[dict[str, Any]]:
    """Read rows of text under a header; spreadsheets put ";" or tabs where commas are usual."""
    lines = iter(file)
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(reader, [])]
    rows = []
    for number, fields in enumerate(line for line in reader if line):
        if len(fields) != len(names):
            raise ArgumentError(
                f"{path}, row {number} has {len(fields)} values under {len(names)} names; put "
                f'texts with "{delimiter}" into quotes'
            )
        rows.append({name: text or None for name, text in zip(names, fields, strict=True)})
    return rows


def as_label(text: object) -> Any:
    """Convert a .csv file's label: a whole number is one, as in other files."""
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    return text


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
