"""JSON that others wrote, and files that hold one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.config.files import read_limited
from ldm.errors import CheckpointError
from ldm.writing import whole_file

MOST_BYTES = 64 << 20  # of a file; the largest real ones, vocabularies, have 5 MB
MOST_DEPTH = 100  # of lists in lists; real ones have ten
TOO_DEEP = f"it is nested deeper than {MOST_DEPTH}"


def load_json(
    text: str | bytes, strict: bool = True, parse_int: Callable[[str], int] | None = None
) -> Any:
    """Read a JSON text. Raises ValueError for one that is broken, or nested deeper than 100.

    Numbers of more than 4,300 digits, which take quadratic time, are among these. What is read can
    be walked by recursion, and shown.

    strict: whether control characters within strings are errors, as JSON has it.
    parse_int: reads the digits of a whole number; None is ``int``.
    """
    try:
        value = json.loads(text, strict=strict, parse_int=parse_int)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise ValueError for lists and objects nested deeper than ``MOST_DEPTH``."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [each for one in inner for each in one if isinstance(each, dict | list)]
    if level:
        raise ValueError(TOO_DEEP)


def read_json(path: str | Path, optional: bool = False) -> dict[str, Any]:
    """Read a file that holds one JSON object; {} if an ``optional`` one does not exist.

    Raises CheckpointError for a file that is missing, unreadable, or not a JSON object.
    """
    path = Path(path)
    try:
        values = load_json(read_limited(path, MOST_BYTES, what="JSON of a model"))
    except (FileNotFoundError, NotADirectoryError):
        if optional:
            return {}
        raise CheckpointError(f"{path} does not exist; a model folder needs it") from None
    except OSError as error:
        raise CheckpointError(f"{path!s:.500} cannot be read ({error.strerror})") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise CheckpointError(
            f"cannot read {path} as JSON ({error}); download the model again"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def write_json(path: str | Path, values: dict[str, Any]) -> None:
    """Write a JSON object whole or not at all, and the folder it is in. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with whole_file(path) as new:
        new.write_text(text, encoding="utf-8")
