"""Tables of a config file as dataclasses: unknown keys get the nearest known name, values a range.

@dataclass
class Options:
    kl_weight: float = within("[0, inf)", 1e-6)
    kind: str = choice("linear", "cosine")

options = read_table(Options, config.options, "options.")
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ldm.errors import ArgumentError

T = TypeVar("T")
KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    dict: "a table",
    tuple: "a list",
    list: "a list",
    Sequence: "a list",
}


def within(interval: str, default: Any = dataclasses.MISSING, words: str = "") -> Any:
    """Make a field whose value, or each of its values, lies in an interval such as "[0, 1)".

    words: what errors say in place of "in [0, 1)".
    """
    return dataclasses.field(default=default, metadata={"interval": interval, "words": words})


def choice(*names: str, words: str = "") -> Any:
    """Make a field that holds one of ``names``; the first is its default.

    words: what errors say in place of "'a' or 'b'".
    """
    return dataclasses.field(default=names[0], metadata={"names": names, "words": words})


def nearest(name: str, known: list[str]) -> str:
    """ "; did you mean …?", or all that is known where nothing is near."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(sorted(known))}"


def read_table(cls: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """The dataclass ``cls`` of a table of TOML; ``prefix``, such as "options.", is for messages.

    Raises ArgumentError for a key that is unknown or missing, and as ``check_values`` does.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise ArgumentError(f"unknown setting {prefix}{key}; {nearest(key, list(known))}")
    for name, field in known.items():
        optional = {field.default, field.default_factory} != {dataclasses.MISSING}
        if name not in values and not optional:
            raise ArgumentError(f"{prefix}{name} is missing; it has no default")
    table = cls(**values)
    check_values(table, prefix)
    return table


def check_values(table: Any, prefix: str = "", expected: str = "expected") -> None:
    """Raise ArgumentError for a field of a dataclass of a wrong type or outside its range.

    expected: what stands before the type in words. A field's metadata may name the type ("kind").
    """
    hints = _hints(table.__class__)
    for field in dataclasses.fields(table):
        value, name = getattr(table, field.name), f"{prefix}{field.name}"
        if not _fits(value, hints[field.name]):
            kind = field.metadata.get("kind") or _kind(hints[field.name])
            raise ArgumentError(f"{name} is {value!r:.60}; {expected} {kind}")
        names, interval = field.metadata.get("names"), field.metadata.get("interval")
        words = field.metadata.get("words")
        if names and value not in names:
            listed = words or " or ".join(map(repr, names))
            raise ArgumentError(f"{name} is {value!r}; expected {listed}")
        for one in value if isinstance(value, list | tuple) else [value]:
            if interval and one is not None and not _inside(one, interval):
                raise ArgumentError(f"{name} is {value}; it must be {words or f'in {interval}'}")


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _inside(value: float, interval: str) -> bool:
    """Whether a number lies in an interval as mathematicians write it."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value as TOML has it is of a type; a whole number counts as a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            return False
        each = [inner[0]] * len(value) if Ellipsis in inner or origin is list else list(inner)
        return len(value) == len(each) and all(map(_fits, value, each))
    if hint is float:
        return _is_real(value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _is_real(value: object) -> bool:
    """Whether a value can be computed with as a float; whole numbers past any float cannot."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        math.isnan(value)
    except OverflowError:
        return False
    return True


def _kind(hint: Any) -> str:
    """A type, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(one) for one in inner if one is not type(None))
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)} values"
    return KINDS.get(origin or hint, str(hint))
