"""Errors for users: the command line prints their message on one line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping

LONGEST_MESSAGE = 1500  # letters
START, END = 600, 300  # letters of a longer one that are kept: what is wrong may stand at its end
LONGEST_WORD = 100  # letters that are compared, which takes quadratic time


class LDMError(Exception):
    """Base of all errors that this package raises on purpose.

    What a message quotes may be long; its middle is left out then.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= LONGEST_MESSAGE else f"{text[:START]}…{text[-END:]}"


class ArgumentError(LDMError, ValueError):
    """An argument has a value that cannot work (command line: exit code 2)."""


class UnknownArgumentError(ArgumentError, TypeError):
    """A function has no such argument."""


class UnknownAttributeError(ArgumentError, AttributeError):
    """An object has no such attribute."""


class CheckpointError(LDMError, RuntimeError):
    """A model folder, weight file or config is missing, broken or not supported (exit code 1)."""


class ImageError(LDMError, OSError):
    """An image cannot be read or written (exit code 1)."""


class NotEnoughMemoryError(LDMError, MemoryError):
    """Something does not fit into the memory that there is (exit code 1)."""


class DataError(LDMError):
    """A data set is incomplete, broken or holds nothing usable (exit code 1)."""


class TrainingError(LDMError):
    """A training run cannot continue; the message names the step (exit code 1)."""


def did_you_mean(
    word: str,
    known: Iterable[str] | Mapping[str, str],
    count: int = 1,
    quote: Callable[[str], str] = repr,
) -> str:
    """ "did you mean 'a' or 'b'?" with up to ``count`` names nearest to a word; "" for none near.

    known: the names, or spellings of them, such as those without case, each with its name.
    """
    names = known if isinstance(known, Mapping) else {name: name for name in known}
    near = difflib.get_close_matches(word[:LONGEST_WORD], names, count)
    found = dict.fromkeys(names[spelling] for spelling in near)
    return f"did you mean {' or '.join(map(quote, found))}?" if found else ""
