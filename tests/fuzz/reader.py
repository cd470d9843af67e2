"""What is fuzzed: a reader, and files that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def nothing(folder: Path) -> None:
    """Put nothing beside the file."""


@dataclass(frozen=True)
class Reader:
    """Something that reads what others wrote.

    Attributes:
        name: of the reader, in reports.
        seeds: returns good files, as bytes. They are made once; small ones are better.
        read: reads a file as users do: all that it returns is used as far as users would. What it
            refuses, it refuses with an ``LDMError``; anything else is an escape.
        file: the name of the file in the folder that ``surroundings`` prepared.
        tokens: pieces of the format, which are put in.
        slow: whether a case takes more than about 20 ms: it gets fewer.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path], object]
    file: str = "case"
    tokens: Sequence[bytes] = ()
    surroundings: Callable[[Path], None] = nothing
    slow: bool = False
