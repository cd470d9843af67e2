"""Prompt styles: ``styles.csv`` in the folder of models, as A1111's web UI writes it."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import LDMError
from ldm.server.errors import unknown

FILE = "styles.csv"
MOST_BYTES = 4 << 20
HOLE = "{prompt}"


@dataclass(frozen=True)
class Style:
    """Texts that a style puts around a prompt or behind it."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


def read_styles(folder: Path | None) -> dict[str, Style]:
    """Read the styles of a folder of models, by name; {} without a file.

    Raises LDMError for a file that is no table of styles.
    """
    if folder is None or not (folder / FILE).is_file():
        return {}
    path = folder / FILE
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise LDMError(f"{path} has more than {MOST_BYTES:,} bytes")
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    except (csv.Error, UnicodeDecodeError) as error:
        raise LDMError(f"{path} is no table of styles ({error})") from None
    found = {}
    for row in rows:
        name = row.get("name") or ""
        prompt = row.get("prompt", row.get("text")) or ""
        if name and name.lower() != "none":
            found[name] = Style(name, prompt, row.get("negative_prompt") or "")
    return found


def apply_styles(names: list[str], known: dict[str, Style], texts: tuple[str, str]) -> list[str]:
    """Return a prompt and a negative prompt with styles. Raises UnknownNameError."""
    found = list(texts)
    for name in names:
        if name == "None":
            continue
        if name not in known:
            raise unknown("style", name, [*known])
        style = known[name]
        for i, text in enumerate((style.prompt, style.negative_prompt)):
            found[i] = joined(found[i], text)
    return found


def joined(prompt: str, style: str) -> str:
    """Return a prompt in the place that a style has for it, or before it."""
    if HOLE in style:
        return style.replace(HOLE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)
