"""Files, JSON and TOML that others wrote: read within limits, or refused with the reason.

All that training reads passes here: a file is a regular one before it is opened, a line and a
number have a greatest length, and brackets a greatest depth, so that reading takes time and memory
in proportion to the file. What is refused is a ValueError or an OSError, which each reader turns
into its own error, with the file's name.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ldm.config.files import KINDS
from ldm.config.json import TOO_DEEP, check_depth, load_json
from ldm.errors import ArgumentError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_LINE = 1 << 24  # characters of a line, or bytes of a text inside another file
MOST_DIGITS = 400  # of a whole number: larger ones are beyond every float
MOST_PARTS = 32  # of a dotted key of TOML, whose reader takes their square
# Half of a pair of surrogates, which is no text.
HALF = re.compile("[\ud800-\udfff]")
BETWEEN_KEYS, DOT = re.compile(r"[=,{}\[\]\n]"), re.compile(r"\.[ \t]*[\w\"'-]")


def kind_of_file(path: str | Path) -> str | None:
    """Return what a path names in words, such as "a named pipe"; None for a regular file.

    Raises OSError if nothing has that name.
    """
    if "\0" in str(path):
        raise FileNotFoundError(errno.ENOENT, "its name holds a NUL", str(path).replace("\0", "?"))
    mode = os.stat(path).st_mode  # noqa: PTH116 (a name may be longer than a Path's methods take)
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


def open_file(path: Path) -> BinaryIO:
    """Open a regular file. Raises OSError for anything else, at once: a pipe would wait."""
    if kind := kind_of_file(path):
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    return path.open("rb")


def read_file(path: Path, most: int) -> bytes:
    """Read a regular file of at most so many bytes. Raises OSError, ValueError for a larger one."""
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text in UTF-8, or in UTF-16 with the mark that editors write.

    Line ends are kept as they are. Raises OSError, UnicodeError, and ValueError for a line of more
    than ``MOST_LINE`` characters.
    """
    with open_file(path) as file:
        begin = file.read(2)
    wide = begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    with path.open(encoding="utf-16" if wide else "utf-8-sig", newline="") as text:
        while line := text.readline(MOST_LINE + 1):
            if len(line) > MOST_LINE:
                raise ValueError(f"it has a line of more than {MOST_LINE:,} characters")
            yield line


def whole_number(digits: str) -> int:
    """Convert the digits of a whole number. Raises ValueError for too many."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits):,} digits; at most {MOST_DIGITS} work")
    return int(digits)


TOMLDecodeError = tomllib.TOMLDecodeError


def parse_json(text: str | bytes) -> Any:
    """Read JSON, as ``load_json`` does.

    Raises ValueError also for a number of more than ``MOST_DIGITS`` digits, and for strings that
    are not valid Unicode.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    value = load_json(text, parse_int=whole_number)
    if "\\ud" in text or "\\uD" in text:
        check_unicode(value)
    return value


def inside(value: Any) -> list[Any]:
    """Return the values in a list or object."""
    return list(value.values()) if isinstance(value, dict) else value if type(value) is list else []


def scalars(value: Any) -> Iterator[Any]:
    """Yield the keys and single values in nested lists and objects."""
    rest = [value]
    while rest:
        one = rest.pop()
        rest += inside(one)
        if isinstance(one, dict):
            yield from one
        elif not isinstance(one, list):
            yield one


def check_unicode(value: Any) -> None:
    """Raise ValueError for a string with half of a pair of surrogates."""
    for one in scalars(value):
        if isinstance(one, str) and HALF.search(one):
            raise ValueError(f"{one!r:.60} is not valid Unicode")


def parse_toml(text: str) -> dict[str, Any]:
    """Read TOML as settings: strings, numbers, true and false, lists and tables.

    Raises ValueError for other text, as ``parse_json`` does, for dates, for keys of more than
    ``MOST_PARTS`` parts, and for strings with a NUL, which no file can be called.
    """
    check_text(text)
    for piece in BETWEEN_KEYS.split(text):
        if len(DOT.findall(piece)) > MOST_PARTS:
            raise ValueError(f"it has a key of more than {MOST_PARTS} parts")
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_depth(values)
    for one in scalars(values):
        if isinstance(one, str):
            check_text(one)
        if type(one) is int and abs(one) >= 2**63:  # as TOML has it
            raise ValueError("it has a whole number that does not fit into 64 bits")
        if not isinstance(one, str | int | float):
            raise ValueError(f"it has a date or time, {one}, which is no setting; put it in quotes")
    return values


def check_text(text: str) -> None:
    """Raise ValueError for a text that is not valid Unicode, or that holds a NUL."""
    if HALF.search(text):
        raise ValueError("it is not valid Unicode (UTF-8)")
    if "\0" in text:
        raise ValueError("it holds a NUL, which no setting may")


def check_defaults() -> None:
    """Raise ArgumentError if PyTorch makes tensors of another type or place than training expects.

    ``torch.set_default_dtype`` and ``torch.set_default_device`` would change weights, noise and
    the rows that are drawn.
    """
    made = torch.empty(0)
    if made.dtype != torch.float32 or made.device.type != "cpu":
        raise ArgumentError(
            f"PyTorch's defaults are {made.dtype} and {made.device}; training needs float32 and "
            "the CPU, and moves to a GPU by itself: call torch.set_default_dtype(torch.float32) "
            'and torch.set_default_device("cpu")'
        )
