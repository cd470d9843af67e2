"""Errors of libraries that ran out of memory, recognised by their types and words.

PyTorch, oneDNN, safetensors, numpy and Pillow each have their own. Nothing is imported for it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from ldm.errors import LDMError, NotEnoughMemoryError

T = TypeVar("T")
WORDS = re.compile(
    r"can(?:'|no)t allocate memory|cannot allocate memory|out of memory|OutOfMemory|bad_?alloc"
    r"|could not create a (?:primitive|memory)|failed to map segment|ALLOC_FAILED"
    r"|(?:start|create) (?:a )?(?:new )?thread|Thread creation failed",
    re.IGNORECASE,
)
ADVICE = "draw smaller pictures or fewer at once (--batch-size 1), or raise the limit of memory"


def is_shortage(error: BaseException) -> bool:
    """Whether an error of any library says that there was not enough memory."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    kinds = (RuntimeError, ImportError, OSError)
    library = type(error).__module__.partition(".")[0] in ("safetensors", "safetensors_rust")
    if isinstance(error, LDMError) or not (isinstance(error, kinds) or library):
        return False
    return WORDS.search(f"{type(error).__name__}: {error}") is not None


def message(error: BaseException) -> str:
    """Return one line about an error of which ``is_shortage``."""
    words = str(error).strip().splitlines()
    reason = f" ({type(error).__name__}: {words[0]:.200})" if words else ""
    return f"not enough memory{reason}; {ADVICE}"


@contextlib.contextmanager
def named_shortage() -> Iterator[None]:
    """Raise NotEnoughMemoryError in the place of a library's error about too little memory."""
    try:
        yield
    except Exception as error:
        if isinstance(error, LDMError) or not is_shortage(error):
            raise
        raise NotEnoughMemoryError(message(error)) from error


def names_shortage(function: Callable[..., Iterator[T]]) -> Callable[..., Iterator[T]]:
    """Wrap a generator function in ``named_shortage``."""

    @functools.wraps(function)
    def wrapped(*args: object, **keywords: object) -> Iterator[T]:
        with named_shortage():
            yield from function(*args, **keywords)

    return wrapped
