"""Endless captioned pictures of the icon sets: every icon, colour and scene drawn anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.builtin_model.icons import nouns, scenes, sources, split
from tools.builtin_model.icons.nouns import Subject

# How often a thing is drawn: one that people ask for first, another everyday thing, a named thing
# outside of the everyday table, a person or sign.
COMMON, EVERYDAY, NAMED, OTHER = 2.0, 1.0, 0.5, 0.12
# Shares of the kinds of pictures (one, placed, two, several): more scenes than in a fixed data set.
SHARES_COMMON, SHARES_EVERYDAY = (0.4, 0.08, 0.36, 0.16), (0.5, 0.08, 0.28, 0.14)
PICTURES = 8  # of one icon in a row: its drawing is rendered once for them


@dataclass(frozen=True)
class Vocabulary:
    """What is drawn, and how often."""

    subjects: list[Subject]
    odds: np.ndarray  # of each subject, summing to 1
    stock: scenes.Stock

    @property
    def names(self) -> int:
        """The number of different things."""
        return len({name(subject) for subject in self.subjects})


def name(subject: Subject) -> str:
    """Return the name that all icons of one thing share."""
    return subject.noun.noun if subject.noun else subject.label


def read_vocabulary(archives: Path, held_out_seed: int = 0) -> Vocabulary:
    """Read the icon sets in `archives`, without the icons that are held out for measuring.

    Every name is drawn as often as others of its kind, whatever the number of its icons. Raises
    BuildError where an archive is missing or of another version.
    """
    paths = {key: sources.fetch(package, archives) for key, package in sources.SETS.items()}
    emojibase = sources.fetch(sources.EMOJIBASE, archives)
    kept = nouns.read_subjects(paths, emojibase)
    out = split.held_out_icons(kept, held_out_seed)
    everything = nouns.read_subjects(paths, emojibase, everything=True)
    subjects = [s for s in everything if (s.icon.set, s.icon.name) not in out]
    icons_of = Counter(map(name, subjects))
    odds = np.array([weight(subject) / icons_of[name(subject)] for subject in subjects])
    # Only everyday things stand beside others.
    return Vocabulary(subjects, odds / odds.sum(), scenes.Stock(subjects))


def weight(subject: Subject) -> float:
    """How often a thing is drawn, relative to an everyday one."""
    if subject.noun is not None:
        return COMMON if subject.noun.common else EVERYDAY
    return OTHER if subject.keeps_colours else NAMED


def shares(subject: Subject) -> np.ndarray:
    """Return the shares of `scenes.KINDS` among a subject's pictures."""
    return scenes.kinds(subject, SHARES_COMMON, SHARES_EVERYDAY)


def compose(
    vocabulary: Vocabulary, size: int, seed: int, worker: int
) -> Iterator[tuple[np.ndarray, str]]:
    """Yield uint8 pictures (size, size, 3) and their captions for ever.

    The pictures depend on (seed, worker) alone.
    """
    rng = np.random.default_rng([seed, worker])
    while True:
        subject = vocabulary.subjects[int(rng.choice(len(vocabulary.odds), p=vocabulary.odds))]
        pictures, rows = scenes.pictures(
            subject,
            PICTURES,
            size,
            int(rng.integers(2**31)),
            vocabulary.stock,
            shares(subject),
        )
        yield from zip(pictures, (row.caption for row in rows), strict=True)
