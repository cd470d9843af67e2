"""What the built-in model learnt to draw, by ``weights/words.json``.

``python -m tools.builtin_model.list_words`` writes that file.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ldm.checkpoints.assets import asset_path

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
SIGNS = {"BREAK", "AND"}  # of the prompts' grammar
MOST = 5  # words that a message names
NEAR = 0.82  # of difflib's ratio


@functools.cache
def read_words() -> dict[str, Any]:
    """Read the file. Raises CheckpointError if the package is incomplete."""
    path = asset_path("weights") / "words.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def names() -> list[str]:
    """Return all names of things, everyday ones first."""
    words = read_words()
    return [*(name for row in words["things"].values() for name in row), *words["others"]]


@functools.cache
def known_words() -> frozenset[str]:
    """Return every word of a caption that the model learnt, in small letters."""
    words = read_words()
    texts = [*names(), *words["colours"], *words["styles"], *words["around"], *words["plurals"]]
    return frozenset(word for text in texts for word in WORD.findall(text.lower()))


def unknown_words(prompt: str) -> list[str]:
    """Return the words of a prompt that the model never learnt, in order."""
    known = known_words()
    found = dict.fromkeys(WORD.findall(prompt))
    return [word for word in found if word not in SIGNS and not known & forms(word.lower())]


def forms(word: str) -> set[str]:
    """Return a word and what it may be the plural of."""
    found = {word, word.partition("'")[0], word.partition("’")[0]}
    if word.endswith("s"):
        found |= {word[:-1], word.removesuffix("es"), re.sub("ies$", "y", word)}
    return found


def nearest(words: Iterable[str]) -> list[str]:
    """Return the things and colours whose names are nearest to some words; few or none."""
    things = [name for row in read_words()["things"].values() for name in row]
    candidates = [*things, *read_words()["colours"]]
    found: dict[str, None] = {}
    for word in words:
        plain = word.lower()
        begun = [name for name in candidates if len(plain) > 3 and name.startswith(plain)]
        found |= dict.fromkeys(begun[:1] or difflib.get_close_matches(plain, candidates, 1, NEAR))
    return list(found)


def advice(prompts: Sequence[str]) -> str | None:
    """Return a line about words in prompts for the built-in model; None if it knows all."""
    unknown = list(dict.fromkeys(word for prompt in prompts for word in unknown_words(prompt)))
    if not unknown:
        return None
    shown = ", ".join(map(repr, unknown[:MOST])) + ", …" * (len(unknown) > MOST)
    near = nearest(unknown[:MOST])
    hint = f"; near are {', '.join(map(repr, near))}" if near else ""
    return (
        f"the built-in model, which draws icons of everyday things, never learnt {shown}{hint}; "
        "ldm info --words lists what it knows"
    )


def search(text: str) -> list[str]:
    """Return the names of things that contain a text, each with its other words; all for ""."""
    plain = text.lower().strip()
    words = read_words()
    rows = [
        f"{thing} ({', '.join(others)})" if (others := [w for w in row if w != thing]) else thing
        for thing, row in words["things"].items()
        if any(plain in name for name in (thing, *row))
    ]
    rows += [name for name in words["others"] if plain in name.lower()]
    for kind in ("colours", "styles"):
        rows += [f"{name}, one of the {kind}" for name in words[kind] if plain and plain in name]
    return rows


def summary() -> list[tuple[str, str]]:
    """Return rows that say what the model knows."""
    words = read_words()
    things = list(words["things"])
    return [
        ("things", f"{len(things)} everyday ones: {', '.join(things[:40])}, …"),
        ("also", f"{len(words['others'])} emoji by their names, such as 'smiling face'"),
        ("colours", ", ".join(words["colours"])),
        ("backgrounds", "on a … background, in any of these colours"),
        ("styles", ", ".join(words["styles"])),
        ("numbers", ", ".join(row[0] for row in words["numbers"].values())),
        ("sizes", ", ".join(name for row in words["sizes"].values() for name in row)),
        ("places", ", ".join(row[0] for row in words["places"].values())),
        ("two things", ", ".join(form.format(a="…", b="…") for form in words["relations"])),
        ("search", "ldm info --words cat"),
    ]
