"""Rows of JSON or .csv beside pictures, and the usual names of their columns."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ldm.errors import ArgumentError, DataError
from ldm.training.foreign import parse_json, text_lines

# The usual names, the first that is there counts.
FILE = ("file_name", "filename", "file", "image", "image_path", "img_path", "path", "img")
IMAGE = ("image", "img", "jpg", "png", "webp", "jpeg", "pixel_values")
TEXT = ("text", "caption", "captions", "prompt", "txt", "description")
LABEL = ("label", "labels", "fine_label", "cls", "class")
MOST_CAPTION = 1 << 20  # characters of a caption
SHOWN = 12  # names of columns that an error offers
WHOLE = re.compile(r"-?[0-9]{1,19}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines or .csv file.

    Raises ArgumentError where it is missing or broken, naming the row; see ``foreign`` for the
    limits of a line.
    """
    try:
        lines = text_lines(path)
        return _csv(path, lines) if path.suffix == ".csv" else _json_lines(path, lines)
    except FileNotFoundError:
        raise ArgumentError(f"{path} does not exist; the README's data command builds it") from None
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read ({error.strerror or error})") from None
    except ArgumentError:  # which is a ValueError, too
        raise
    except (ValueError, csv.Error) as error:  # of the encoding, a limit, quotes
        raise ArgumentError(
            f"{path} cannot be read ({error}); check its quotes, and save it as UTF-8"
        ) from None


def _json_lines(path: Path, lines: Iterable[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in lines:
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ArgumentError(
                f"{path} is not JSON lines (row {len(rows)}: {error}); build the data set again"
            ) from None
        if not isinstance(row, dict):
            raise ArgumentError(f"{path}, row {len(rows)}: {row!r:.60} is not a JSON object")
        rows.append(row)
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
    """Convert a label in a text: a whole number of at most 19 digits is one, as in other files."""
    if isinstance(text, str) and WHOLE.fullmatch(text):
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
        more = ", …" if len(known) > SHOWN else ""
        raise ArgumentError(
            f"{data} has no column {chosen!r}; it has {', '.join(known[:SHOWN])}{more}"
        )
    return chosen


def first_text(value: object, row: str) -> str | None:
    """Return a row's caption, or the first of several.

    Raises DataError for another type, and for more than ``MOST_CAPTION`` characters.
    """
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if value is not None and not isinstance(value, str):
        raise DataError(f"{row}: the caption is {value!r:.60}; expected text")
    if value is not None and len(value) > MOST_CAPTION:
        raise DataError(
            f"{row}: the caption has {len(value):,} characters; at most {MOST_CAPTION:,} work"
        )
    return value
