"""List what the trainer's pictures show, for `ldm info` and its advice on prompts.

    python -m tools.builtin_model.list_words --archives data/npm --output words.json

The trainer writes the same list beside its weights; `weights/words.json` is that of the weights
which lie there. `things` are everyday nouns with the words for them, the commonest first; `others`
are names of further emoji, people, signs, flags and silhouettes, and other words for these; then
the words of captions for colours, styles, numbers, sizes, places and relations. `around` are words
that the captions or the text encoder's phrases have besides. Plurals that are more than an "s" are
listed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.builtin_model import phrases
from tools.builtin_model.compose import Vocabulary, read_vocabulary
from tools.builtin_model.icons import wording
from tools.builtin_model.icons.captions import MORE_STYLES, STYLES
from tools.builtin_model.icons.colour import TONES
from tools.builtin_model.icons.nouns import Noun, read_everyday


def words_of(texts: Iterable[str]) -> list[str]:
    """Return the words in some texts, sorted."""
    return sorted({word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())})


def plurals(nouns: Iterable[Noun]) -> list[str]:
    """Return the last words of plurals that are not a word with an "s"."""
    found = set()
    for word in (word for noun in nouns for word in noun.words if word not in noun.bare):
        one, many = word.split(" of ")[0].split()[-1], wording.many(word).split(" of ")[0].split()
        if many[-1] not in (one, f"{one}s"):
            found.add(many[-1])
    return sorted(found)


def list_words(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the content of the file."""
    nouns = sorted(read_everyday(), key=lambda noun: not noun.common)
    things = {noun.noun: dict.fromkeys(noun.words) for noun in nouns}
    others: set[str] = set()
    for subject in vocabulary.subjects:
        if subject.noun is not None:
            things[subject.noun.noun] |= dict.fromkeys(subject.others)
        else:
            others |= {subject.label, *subject.others}
    patterns = [*wording.FRAMES, *(form for _, form in wording.GROUNDS)]
    patterns += [form for forms in wording.RELATIONS.values() for form in forms]
    patterns = [re.sub(r"{\w*}", "", text) for text in patterns]
    around = [*patterns, *phrases.MEDIA, *phrases.KINDS, *phrases.COLOURS, *phrases.NUMBERS]
    around += [*phrases.PLACES, *phrases.RELATIONS, *phrases.SIZES, "a an the of it is"]
    return {
        "things": {noun: list(words) for noun, words in things.items()},
        "others": sorted(others),
        "colours": list(TONES),
        "styles": list(dict.fromkeys([*STYLES.values(), *MORE_STYLES.values()])),
        "numbers": {str(key): list(dict.fromkeys(v)) for key, v in wording.NUMBERS.items()},
        "sizes": {key: list(dict.fromkeys(v)) for key, v in wording.SIZES.items()},
        "places": {key: list(dict.fromkeys(v)) for key, (_, v) in wording.PLACES.items()},
        "relations": sorted({form for forms in wording.RELATIONS.values() for form in forms}),
        "around": words_of(around),
        "plurals": plurals(nouns),
    }


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--archives", type=Path, default=Path("data/npm"))
    parser.add_argument("--output", type=Path, default=Path("words.json"))
    arguments = parser.parse_args()
    write_words(read_vocabulary(arguments.archives), arguments.output)
    print(arguments.output)


def write_words(vocabulary: Vocabulary, path: Path) -> None:
    """Write the file, whole or not at all; its folder is made if it is missing."""
    rows = (
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in list_words(vocabulary).items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
