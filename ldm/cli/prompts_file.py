"""``ldm-generate --prompts FILE``: a prompt a line, or JSON with arguments in every line."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ldm.cli.choices import prepare_choices, reads_choices
from ldm.cli.fields import ALIASES, FIELDS, FILES, LISTS, NEGATED, REPEATED, SWITCHES
from ldm.cli.options import MAX_PICTURES, NAMED, check_arguments, parser
from ldm.cli.streams import MOST_BYTES, STREAM, read_stdin
from ldm.config.checking import shown
from ldm.config.files import read_limited
from ldm.config.json import load_json
from ldm.errors import ArgumentError, LDMError

CHOICES = ("choices", "all")
KEYS = (
    *FIELDS,
    "control",
    "output",
    *CHOICES,
)  # keys of a line; other arguments are for the whole command
TEXTS = ("prompt", "control", "output", *FILES)
REPEATED_KEYS = REPEATED | {"control"}  # the latter stands for control_image, preprocessed


@dataclass(frozen=True, eq=False)
class Line:
    """A line of the file; or, with the number 0, the command line itself."""

    number: int
    arguments: argparse.Namespace  # the command line's, unless the line has others
    given: frozenset[str] = frozenset()  # names of the line's own
    error: LDMError | None = None


def file_label(path: str) -> str:
    """Return the name of a file of prompts for messages."""
    return "stdin" if path == STREAM else path


def read_lines(path: str, arguments: argparse.Namespace) -> Iterator[Line]:
    """Yield the lines of a file of prompts, also those that are wrong.

    A file is JSON lines if it is called .jsonl, or if its first line begins with "{". In plain
    text, lines that begin with "#" are comments. A file is also a pipe or a terminal.
    Raises LDMError if it cannot be read, is too long, or has more lines than pictures may be drawn.
    """
    try:
        content = read_stdin("--prompts") if path == STREAM else read_file(path)
    except OSError as error:
        raise LDMError(f"{path} cannot be read ({error.strerror}); give a text file") from None
    rows = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    filled = [(number, row.strip()) for number, row in enumerate(rows, 1) if row.strip()]
    if len(filled) > MAX_PICTURES:
        raise LDMError(f"{file_label(path)} has {len(filled)} lines; at most {MAX_PICTURES} work")
    begin = rb"\{\s*[\"}]" if reads_choices(arguments) else rb"\{"  # {red|blue} is no JSON
    in_json = path.endswith(".jsonl") or (bool(filled) and bool(re.match(begin, filled[0][1])))
    for number, row in filled:
        if not in_json and row.startswith(b"#"):
            continue
        try:
            try:
                text = row.decode()
            except UnicodeDecodeError:
                raise ArgumentError("it is not UTF-8 text; save the file as UTF-8") from None
            given = _names(_object(text) if in_json else {"prompt": text})
            line = Line(number, _merge(given, arguments), frozenset(given))
        except LDMError as error:
            line = Line(number, arguments, error=error)
        yield line


def read_file(path: str) -> bytes:
    """Read a file of prompts, which may be a pipe. Raises OSError, and LDMError for what is not."""
    return read_limited(path, MOST_BYTES, LDMError, "file of prompts", pipes=True)


def _object(text: str) -> dict[str, Any]:
    try:
        value = load_json(text)
    except ValueError as error:
        raise ArgumentError(f"it is no JSON ({error}); expected {{…}}") from None
    if not isinstance(value, dict):
        raise ArgumentError(f'it is {text[:40]}; expected an object such as {{"prompt": "a cat"}}')
    return value


def _names(given: dict[str, Any]) -> dict[str, Any]:
    """Rename a line's arguments as the command line names them."""
    own: dict[str, Any] = {}
    for key, value in given.items():
        name = ALIASES.get(key, key)
        if name not in KEYS:
            known = ", ".join(KEYS)
            raise ArgumentError(f"{shown(key)} is no argument of a line; these are: {known}")
        if name in own:
            raise ArgumentError(f"{key!r} is said twice")
        own[name] = _value(key, name, value)
    if "prompt" not in own:
        raise ArgumentError('it has no "prompt"')
    return own


def _value(key: str, name: str, value: Any) -> str | int | float | bool | list[str]:
    """Convert a value to its command-line form. Raises ArgumentError for one of another kind."""
    found = f"{key} is {json.dumps(value):.60}"
    if name in SWITCHES or name in CHOICES:
        if not isinstance(value, bool):
            raise ArgumentError(f"{found}; expected true or false")
        return value != (key in NEGATED)
    if name in LISTS and isinstance(value, list) and all(map(_is_number, value)):
        return ",".join(map(str, value))
    if name in REPEATED_KEYS and isinstance(value, list):
        if value and all(isinstance(part, str) and part and "\0" not in part for part in value):
            return value
        raise ArgumentError(f"{found}; expected a text, or a list of texts")
    if not isinstance(value, str) and not _is_number(value):
        raise ArgumentError(f"{found}; expected a text or a number")
    if name in TEXTS and (not isinstance(value, str) or "\0" in value):
        raise ArgumentError(f"{found}; expected a text")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _merge(given: dict[str, Any], arguments: argparse.Namespace) -> argparse.Namespace:
    """Merge a line's arguments into the command line's."""
    switches = {name: given[name] for name in (*SWITCHES, *CHOICES) if name in given}
    rest = [name for name in given if name not in ("prompt", *switches)]
    argv = [
        f"--{name.replace('_', '-')}={part}"
        for name in rest
        for part in (given[name] if isinstance(given[name], list) else [given[name]])
    ]
    # A value that the namespace has already stays unless the line sets it.
    before = argparse.Namespace(**vars(arguments) | {"prompt": [], "prompts": None})
    for name in REPEATED_KEYS & set(given):  # what the command line gives is not added to
        setattr(before, "control_image" if name == "control" else name, None)
    try:
        merged = parser().parse_args(argv, before) if argv else before  # it takes a while
    except ArgumentError as error:
        raise ArgumentError(str(error).removeprefix("argument ")) from None
    vars(merged).pop(NAMED, None)
    merged = argparse.Namespace(**vars(merged) | switches | {"prompt": [given["prompt"]]})
    if "strength" not in given and merged.image is None:
        merged.strength = None  # the command line's is for the lines that have an image
    prepare_choices(merged)
    check_arguments(merged)
    return merged
