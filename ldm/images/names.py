"""Names of pictures' files: after the prompt and the seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

NAME_BYTES = 100  # of the prompt in a file's name; file systems allow 255 for all of it


def picture_name(prompt: str, seed: int | str | None) -> str:
    """Return the name of a picture's file without ending: "a-red-car-7"."""
    return "-".join([slug(prompt), *([] if seed is None else [str(seed)])])


def slug(text: str, most: int = NAME_BYTES) -> str:
    """Return a text as a part of a name: letters, digits and dashes, up to ``most`` bytes."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    short = "-".join(words).encode()[:most].decode(errors="ignore").strip("-")
    return short or "picture"


def free_names(path: Path) -> Iterator[Path]:
    """Yield a path, then numbered ones: "a-red-car-7.png", "a-red-car-7-2.png", …"""
    yield path
    number = 2
    while True:
        yield path.with_stem(f"{path.stem}-{number}")
        number += 1
