"""The whole vocabulary of the icon sets: every name that a picture can show, in several wordings.

`nouns` has what the fixed data set shows; here are flags, the own names of icons that an everyday
noun takes in ("bullet train"), CLDR's keywords that mean the same, and silhouettes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from . import nouns
from .captions import MORE_STYLES
from .nouns import HERE, Subject
from .sources import Icon, Label, read_icons, read_labels

GLYPHS = "game-icons"  # the set that draws silhouettes of things beyond Unicode's
OTHERS = 5  # wordings of an icon, beside its noun's, at most

# Names that no picture of this size can show, or cannot tell from another's.
WRITING = re.compile(r"japanese .*(button|symbol)|input |information$|tm$|(cl|ng|ab) button")
# Territories whose flag is drawn as that of the state they belong to.
SAME_FLAG = frozenset({
    "bouvet island", "svalbard & jan mayen", "heard & mcdonald islands", "u.s. outlying islands",
    "st. martin", "clipperton island", "diego garcia", "french guiana", "guadeloupe", "mayotte",
    "reunion", "st. pierre & miquelon", "ceuta & melilla", "sark",
})  # fmt: skip
WITH_THE = re.compile(
    r"(united|european|dominican|central|u\.s\.|british|.*islands$|turks|netherlands|philippines|bahamas|"
    r"gambia|maldives|comoros|seychelles|isle of|vatican|palestinian)"
)
ZODIAC = "zodiac"
# Labels of parts: "man: red hair" is a man with red hair, "man: bald" a bald man.
PART, BALD = re.compile(r"(person|man|woman): (\w+ hair|beard)"), re.compile(r"(\w+): bald")
HOUR, HALF = re.compile(r"(\w+) o’clock"), re.compile(r"(\w+)-thirty")
# Their icon's name says more than a picture shows, or is a phrase that nobody types.
UNSAID = re.compile(r"oncoming|speaker \w+ volume|tilted|pointed|circle$|square$|face$")


def read_subjects(archives: dict[str, Path], emojibase: Path) -> list[Subject]:
    """Read all that the sets in `archives` show; those that it has of SETS and MORE_SETS.

    Subjects of one thing have one name: their noun's, or their label.
    """
    labels = read_labels(emojibase, flags=True)
    emoji = {name: path for name, path in archives.items() if name != GLYPHS}
    table = nouns.read_everyday()
    subjects = nouns.choose(read_icons(emoji, labels), labels, table, everything=True)
    found = [named for s in subjects if (named := with_names(s, label_of(s.icon, labels)))]
    if GLYPHS in archives:
        found += glyphs(read_icons({GLYPHS: archives[GLYPHS]}, labels), found)
    return found


def label_of(icon: Icon, labels: dict[str, Label]) -> Label | None:
    """Return what Unicode calls an icon."""
    return labels.get(icon.hexcode) if icon.hexcode else None


def with_names(subject: Subject, label: Label | None) -> Subject | None:
    """Add the names of an icon to what it shows; None where a picture cannot show it."""
    if label is None:
        return subject
    if WRITING.match(label.text):
        return None
    name, others = names_of(label)
    if not name:
        return None
    if subject.noun is not None:
        own = (() if UNSAID.search(name) else (name,)) + others
        new = tuple(word for word in own if word not in subject.noun.words)
        return dataclasses.replace(subject, others=new[:OTHERS], subgroup=label.subgroup)
    keeps = subject.keeps_colours or label.subgroup.endswith("flag")
    return dataclasses.replace(
        subject, label=name, others=others[:OTHERS], subgroup=label.subgroup, keeps_colours=keeps
    )


def names_of(label: Label) -> tuple[str, tuple[str, ...]]:
    """Return the name that stands for a label, "" if none does, and other wordings of it."""
    text = label.text
    more = tuple(read_wordings().get(text, ()))
    if label.subgroup.endswith("flag"):
        name, others = flag_names(text)
    elif text.startswith("family"):
        name, others = "family", ()
    elif re.match(r"kiss(: |$)|couple with heart", text):
        name, others = ("kissing couple" if text[0] == "k" else "couple with a heart"), ()
    elif text.startswith("keycap: "):
        sign = {"#": "hash sign", "*": "asterisk"}.get(text[8:], f"number {text[8:]}")
        name, others = sign, (sign.replace("number", "digit"),)
    elif label.subgroup == ZODIAC:
        name, others = f"{text} zodiac sign", (text,)
    elif match := HOUR.fullmatch(text):
        name, others = f"clock at {match[1]} o'clock", (f"{match[1]} o'clock",)
    elif match := HALF.fullmatch(text):
        name, others = f"clock at {match[1]} thirty", (f"half past {match[1]}",)
    elif match := PART.fullmatch(text):
        name, others = f"{match[1]} with {'a ' * (match[2] == 'beard')}{match[2]}", ()
    elif match := BALD.fullmatch(text):
        name, others = f"bald {match[1]}", ()
    else:
        name, others = text, ()
    words = dict.fromkeys(plain(word) for word in (name, *others, *more))
    words.pop(plain(name), None)
    return plain(name), tuple(words)


def flag_names(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the names of a flag: of "flag: japan", "flag of japan" and "japan flag"."""
    sort, colon, of = text.partition(": ")
    if not colon:
        return text, ()
    of = re.sub(r" (sar china|\(\w+\))|\(\w+\) ", "", plain(of)).strip()
    if sort != "flag" or of in SAME_FLAG:
        return "", ()
    the = "the " if WITH_THE.match(of) else ""
    return f"flag of {the}{of}", (f"{of} flag",)


def plain(name: str) -> str:
    """Write a name as it is typed: without colons, accents and curly marks."""
    name = name.replace(":", "").replace("’", "'").replace("“", "").replace("”", "")
    return "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))


@functools.cache
def read_wordings(path: Path = HERE / "wordings.json") -> dict[str, list[str]]:
    """Read other words for emoji by their label: keywords of CLDR and the like that mean the same.

    Keywords of many things ("face", "animal") and of things beside ("banana" of monkeys) are not
    among them.
    """
    return dict(json.loads(path.read_text(encoding="utf-8")))


@functools.cache
def read_glyphs(path: Path = HERE / "silhouettes.json") -> frozenset[str]:
    """Read which icons of the set of silhouettes are drawn: things that one word stands for."""
    return frozenset(json.loads(path.read_text(encoding="utf-8")))


def glyphs(icons: Iterable[Icon], known: Iterable[Subject]) -> list[Subject]:
    """Return the listed silhouettes: of things in `known`, or of new ones by the icon's name."""
    by_word: dict[str, Subject] = {}
    for subject in known:
        words = subject.noun.words if subject.noun else (subject.label,)
        for word in (*words, *subject.others):
            by_word.setdefault(word, subject)
    found = []
    for icon in icons:
        if icon.name not in read_glyphs():
            continue
        word = icon.name.replace("-", " ")
        like = by_word.get(word)
        if like is None:
            found.append(Subject(icon, word, None, subgroup=GLYPHS))
        else:
            own = () if like.noun is None or word in like.noun.words else (word,)
            found.append(dataclasses.replace(like, icon=icon, others=own))
    return found


def apart(subjects: list[Subject], out: Iterable[Subject]) -> list[Subject]:
    """Leave out the icons `out`, and silhouettes of the same emoji, which may have their shapes."""
    marks = {(s.icon.set, s.icon.name) for s in out}
    shapes = {mark for s in out for mark in (s.icon.name, s.icon.hexcode) if mark}
    return [
        s
        for s in subjects
        if (s.icon.set, s.icon.name) not in marks
        and not (s.icon.set in MORE_STYLES and {s.icon.name, s.icon.hexcode} & shapes)
    ]
