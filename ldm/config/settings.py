"""Tables of a config file as dataclasses: unknown keys get the nearest known name, values a range.

@dataclass
class Options:
    kl_weight: float = within("[0, inf)", 1e-6)
    kind: str = choice("linear", "cosine")

options = read_table(Options, config.options, "options.")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, get_type_hints

from ldm.config.checking import fault
from ldm.errors import ArgumentError, did_you_mean

T = TypeVar("T")


def within(interval: str, default: Any = dataclasses.MISSING, expected: str = "") -> Any:
    """Return a field whose value, or each of its values, lies in an interval such as "[0, 1)".

    expected: what messages say of a value that does not fit, instead of the type or the interval.
    """
    metadata = {"interval": interval, "expected": expected}
    return dataclasses.field(default=default, metadata=metadata)


def choice(*names: Any, expected: str = "") -> Any:
    """Return a field that holds one of ``names``; the first is its default."""
    return dataclasses.field(default=names[0], metadata={"names": names, "expected": expected})


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
    return table


def check_values(table: Any, prefix: str = "") -> None:
    """Raise ArgumentError for a field of a dataclass of a wrong type or outside its range."""
    hints = get_type_hints(type(table))
    for field in dataclasses.fields(table):
        value, rule = getattr(table, field.name), field.metadata
        wrong = fault(value, hints[field.name], rule.get("interval"), rule.get("names", ()))
        if wrong:
            wrong = rule.get("expected") or wrong
            raise ArgumentError(f"{prefix}{field.name} is {value!r}; {wrong}")
