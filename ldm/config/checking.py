"""Whether a value fits its field: the type that it is annotated with, its range, its choices.

The one check behind model configs, training settings and requests. They differ in the error that
they raise and in what they say of the value before what is wrong with it.
"""

from __future__ import annotations

import types
from collections.abc import Collection
from typing import Any, Union, get_args, get_origin

UNIONS = (Union, types.UnionType)
WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    dict: "a table",
    tuple: "a list",
    list: "a list",
}


def fault(value: Any, hint: Any, interval: str | None = None, choices: Collection[Any] = ()) -> str:
    """Say what was expected where a value does not fit; "" where it does.

    hint: a type as ``typing.get_type_hints`` returns it. interval: of the value, or of each number
    in it, such as "[0, 1)"; None is outside of no interval.
    """
    if not fits(value, hint):
        return f"expected {in_words(hint)}"
    if choices and value not in choices:
        return expected_one_of(choices)
    if interval and not inside(value, interval):
        return f"it must be in {interval}"
    return ""


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
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else origin or hint)


def inside(value: Any, interval: str) -> bool:
    """Whether a number, or each number of a list, lies in an interval such as "(0, inf]"."""
    if isinstance(value, list | tuple):
        return all(inside(one, interval) for one in value)
    if not isinstance(value, int | float):
        return True
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


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
    return WORDS.get(origin or hint, str(hint))


def expected_one_of(choices: Collection[Any]) -> str:
    """ "expected 'a' or 'b' or none"."""
    return "expected " + " or ".join("none" if one is None else repr(one) for one in choices)
