"""Tables of a config file as dataclasses: unknown keys get the nearest known name, values a range.

@dataclass
class Options:
    kl_weight: float = within("[0, inf)", 1e-6)
    kind: str = choice("linear", "cosine")

options = read_table(Options, config.options, "options.")
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, TypeVar, get_type_hints

from ldm.config.checking import differs, fits, in_words, inside, listed, shown
from ldm.errors import ArgumentError, did_you_mean

T = TypeVar("T")


def within(interval: str, default: Any = dataclasses.MISSING, words: str = "") -> Any:
    """Return a field whose value, or each of its values, lies in an interval such as "[0, 1)".

    words: what messages say in place of "in [0, 1)".
    """
    return dataclasses.field(default=default, metadata={"interval": interval, "words": words})


def choice(*names: Any, words: str = "") -> Any:
    """Return a field that holds one of ``names``; the first is its default.

    words: what messages say in place of "'a' or 'b'".
    """
    return dataclasses.field(default=names[0], metadata={"names": names, "words": words})


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean …?", or all that is known where nothing is near."""
    known = list(known)
    return did_you_mean(name, known) or f"expected one of {', '.join(sorted(known))}"


def read_table(cls: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """Read a table of TOML as the dataclass ``cls``; ``prefix`` ("options.") is for messages.

    Raises ArgumentError for a key that is unknown or missing, and as ``check_values`` does.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ArgumentError(f"unknown setting {prefix}{key}; {nearest(key, known)}")
    for name, field in known.items():
        optional = {field.default, field.default_factory} != {dataclasses.MISSING}
        if name not in values and not optional:
            raise ArgumentError(f"{prefix}{name} is missing; it has no default")
    table = cls(**values)
    check_values(table, prefix)
    for name, hint in type_hints(cls).items():  # type: ignore[arg-type]
        if name in values:
            object.__setattr__(table, name, as_float(getattr(table, name), hint))
    return table


def as_float(value: Any, hint: Any) -> Any:
    """Return a whole number as a float where ``hint`` is one: PyTorch takes no integer of any size.

    Others, and what no float can hold, stay as they are.
    """
    if type(value) is int and hint in (float, float | None) and abs(value) < 2**1023:
        return float(value)
    return value


def check_values(table: Any, prefix: str = "", expected: str = "expected") -> None:
    """Raise ArgumentError for a field of a dataclass of a wrong type or outside its range.

    expected: what stands before the type in words. A field's metadata may name the type ("kind"),
    and what objects of other libraries have to be ("form": see ``ldm.config.forms``).
    """
    hints = type_hints(table.__class__)
    for field in dataclasses.fields(table):
        value, rule = getattr(table, field.name), field.metadata
        wrong = f"{prefix}{field.name} is {shown(value)}"
        interval, names, words = (rule.get(key) for key in ("interval", "names", "words"))
        if names and all(differs(value, name) for name in names):
            raise ArgumentError(f"{wrong}; expected {words or listed(names)}")
        if not fits(value, hints[field.name]):
            kind = rule.get("kind") or in_words(hints[field.name])
            raise ArgumentError(f"{wrong}; {expected} {kind}")
        if interval and not inside(value, interval):
            where = words or f"in {interval}"
            raise ArgumentError(f"{wrong}; it must be {where}")
        form = rule.get("form")
        if form and value is not None and (fault := form.fault(value)) is not None:
            raise ArgumentError(f"{prefix}{field.name} is {fault}")


@functools.cache
def type_hints(cls: Any) -> dict[str, Any]:
    """Return the types of a class's fields, which take a while to read."""
    return get_type_hints(cls)
