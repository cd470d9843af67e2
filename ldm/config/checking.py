"""Whether a value fits its field: the type that it is annotated with, its range, its choices.

The one check behind model configs, training settings and requests. They differ in the error that
they raise and in how its message introduces the value.
"""

from __future__ import annotations

import math
import types
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

LARGEST = 2**64  # no whole number that anything here means is as large
UNIONS = (Union, types.UnionType)
WORDS: dict[Any, str] = {
    Path: "a path",
    Mapping: "a table",
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    dict: "a table",
    tuple: "a list",
    list: "a list",
    Sequence: "a list",
}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value as JSON and TOML have it is of a type; a whole number counts as a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in UNIONS:
        return any(fits(value, one) for one in inner)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            return False
        each = [inner[0]] * len(value) if Ellipsis in inner or origin is list else list(inner)
        return len(value) == len(each) and all(map(fits, value, each))
    if origin is Literal:
        return any(not differs(value, one) for one in inner)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(fits(one, inner[1]) for one in value.values())
    if origin is Sequence:
        listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return listed and all(fits(one, inner[0]) for one in value)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return is_real(value)
    if hint is int:
        return isinstance(value, Integral) and abs(int(value)) < LARGEST
    return isinstance(value, origin or hint)


def is_real(value: object) -> bool:
    """Return whether a value can be computed with as a float; whole numbers past any cannot."""
    if not isinstance(value, Real):
        return False
    try:
        math.isnan(value)
    except OverflowError:
        return False
    return True


def shown(value: object, length: int = 60) -> str:
    """Write a value on one line for messages, cut if it is long; whatever it is."""
    if isinstance(value, str | bytes):
        value = value[: length + 1]  # its quotes are written anyway
    try:
        text = repr(value)
    except Exception:  # more than 4,300 digits, lists nested too deep, an object's own __repr__
        return f"a {type(value).__name__} that cannot be shown"
    text = text if text.isprintable() else " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}…"


def differs(value: Any, other: Any) -> bool:
    """Whether two values are not equal; those that cannot be compared, such as arrays, are not."""
    if value is other:
        return False
    try:
        return bool(value != other)
    except Exception:
        return True


def plain_number(value: Any) -> Any:
    """Return a number of another library as Python's own, also in a list; any other value as is."""
    if type(value) in (list, tuple):
        return type(value)(one if isinstance(one, list) else plain_number(one) for one in value)
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def inside(value: Any, interval: str) -> bool:
    """Whether a number, or each number of a list, lies in an interval such as "(0, inf]"."""
    if isinstance(value, list | tuple):
        return all(inside(one, interval) for one in value)
    is_number = isinstance(value, Real)  # by its type, Real cannot be compared with a float
    if not is_number:
        return True
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return bool(above and (value <= high if interval[-1] == "]" else value < high))


def scalars(hint: Any) -> set[Any]:
    """Return the types of single values that a type is made of: {int} for tuple[int, ...]."""
    if inner := [one for one in get_args(hint) if one is not Ellipsis]:
        return set().union(*map(scalars, inner))
    return {hint}


def in_words(hint: Any) -> str:
    """Describe a type to people who write JSON and TOML."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in UNIONS:
        return " or ".join(in_words(one) for one in inner if one is not type(None))
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)} values"
    if origin is Literal:
        return listed(inner)
    return WORDS.get(origin or hint) or f"a {getattr(hint, '__name__', hint)}"


def listed(choices: Collection[Any]) -> str:
    """Name all choices: "'a' or 'b' or none"."""
    return " or ".join("none" if one is None else repr(one) for one in choices)
