"""The parameters of a preprocessor, as its signature has them: names, types, ranges, defaults.

def canny(image: Image, low: Annotated[float, "[0, 2040]"] = 100) -> Image: ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from ldm.config.checking import fits, in_words, inside
from ldm.errors import ArgumentError, did_you_mean


def parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, str]]:
    """Return (type, interval) of each number that a preprocessor takes."""
    hints = get_type_hints(function, include_extras=True)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Annotated}


def check_parameters(function: Callable[..., Any], **values: object) -> None:
    """Raise ArgumentError for a value of a wrong type or outside the range in the signature."""
    known = parameters(function)
    for name, value in values.items():
        kind, interval = known[name]
        if not (fits(value, kind) and inside(value, interval)):
            raise ArgumentError(
                f"{function.__name__}: {name} is {value!r:.60}; "
                f"expected {in_words(kind)} in {interval}"
            )


def parse_parameter(function: Callable[..., Any], name: str, text: str) -> int | float:
    """Convert the text of one parameter to its type, and check its range.

    Raises ArgumentError for an unknown name, for no number, and as ``check_parameters``.
    """
    known = parameters(function)
    if name not in known:
        hint = did_you_mean(name, list(known)) or f"it takes {', '.join(known) or 'no parameters'}"
        raise ArgumentError(f"{function.__name__} has no parameter {name!r:.60}; {hint}")
    kind, interval = known[name]
    try:
        value: int | float = kind(text)
    except ValueError as error:
        raise ArgumentError(
            f"{function.__name__}: {name} is {text!r:.60}; expected {in_words(kind)} in {interval}"
        ) from error
    check_parameters(function, **{name: value})
    return value
