"""Endless captioned pictures of the icon sets: every icon, colour and scene drawn anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tools.builtin_model.icons import nouns, scenes, sources, split, vocabulary
from tools.builtin_model.icons.captions import MORE_STYLES
from tools.builtin_model.icons.nouns import Subject

# How often a thing is drawn: one that people ask for first, another everyday thing, a named thing
# outside of the everyday table, a person at something, another sign.
COMMON, EVERYDAY, NAMED, PEOPLE, OTHER = 3.0, 1.0, 0.5, 0.25, 0.12
# … and, by Unicode's subgroup, what is seldom asked for or hardly to be drawn.
RARE = {"flag": 0.3, "country-flag": 0.07, "subdivision-flag": 0.07, "keycap": 0.06,
        "alphanum": 0.04, "time": 0.04, vocabulary.GLYPHS: 0.25}  # fmt: skip
# Shares of the kinds of pictures (one, placed, two, several): more scenes than in a fixed data set.
SHARES_COMMON, SHARES_EVERYDAY = (0.4, 0.08, 0.36, 0.16), (0.5, 0.08, 0.28, 0.14)
# How often a set draws a thing, relative to the others that have it. Two sets lack many emoji, or
# differ from others by little: without this, their styles are a third rarer and seldom learnt.
DRAWN = {"twemoji": 1.3, "emojione": 1.9, "fluent-emoji-high-contrast": 0.3, "game-icons": 0.3}
# Shares of captions that name the style: of a large picture in the icon's own colours, and of
# recoloured ones and scenes. A judge of styles names 75 % of the former right, 34 % of the latter:
# a word for what cannot be seen teaches that the word means nothing. A silhouette of a thing that
# other sets draw in colours is always called one, so that nobody gets it unasked.
STYLED = {"twemoji": (0.85, 0.35), "emojione": (0.85, 0.35)}
OTHERS_STYLED, SILHOUETTE, ONLY_SILHOUETTE = (0.7, 0.35), (1.0, 1.0), (0.5, 0.5)
PICTURES = 8  # of one icon in a row: its drawing is rendered once for them


@dataclass(frozen=True)
class Vocabulary:
    """What is drawn, and how often.

    Args:
        held_out: icons of everyday sets that are not drawn, for measuring.
    """

    subjects: list[Subject]
    odds: np.ndarray  # of each subject, summing to 1
    stock: scenes.Stock
    held_out: list[Subject] = field(default_factory=list)

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
    sets = sources.SETS | sources.MORE_SETS
    paths = {key: sources.fetch(package, archives) for key, package in sets.items()}
    emojibase = sources.fetch(sources.EMOJIBASE, archives)
    kept = nouns.read_subjects({key: paths[key] for key in sources.SETS}, emojibase)
    marks = split.held_out_icons(kept, held_out_seed)
    out = [s for s in kept if (s.icon.set, s.icon.name) in marks]
    subjects = vocabulary.apart(vocabulary.read_subjects(paths, emojibase), out)
    return replace(weigh(subjects), held_out=out)


def weigh(subjects: list[Subject]) -> Vocabulary:
    """Decide how often each icon is drawn, and its style named."""
    coloured = {name(s) for s in subjects if s.icon.set not in MORE_STYLES}
    subjects = [replace(s, styled=styled(s, name(s) in coloured)) for s in subjects]
    odds = frequencies(subjects)
    return Vocabulary(subjects, odds / odds.sum(), scenes.Stock(subjects))


def frequencies(subjects: list[Subject]) -> np.ndarray:
    """Return how often each icon is drawn; those of one thing add up to its `weight`."""
    drawn = [DRAWN.get(s.icon.set, 1.0) for s in subjects]
    total: dict[str, float] = defaultdict(float)
    for subject, share in zip(subjects, drawn, strict=True):
        total[name(subject)] += share
    return np.array(
        [weight(s) * share / total[name(s)] for s, share in zip(subjects, drawn, strict=True)]
    )


def styled(subject: Subject, in_colour: bool) -> tuple[float, float]:
    """Return the shares of captions that name the style (`Subject.styled`).

    in_colour: whether another set draws the thing in colours.
    """
    if subject.icon.set in MORE_STYLES:
        return SILHOUETTE if in_colour else ONLY_SILHOUETTE
    return STYLED.get(subject.icon.set, OTHERS_STYLED)


def weight(subject: Subject) -> float:
    """How often a thing is drawn, relative to an everyday one."""
    if subject.noun is not None:
        return COMMON if subject.noun.common else EVERYDAY
    if subject.subgroup in RARE:
        return RARE[subject.subgroup]
    if subject.subgroup.startswith(("person", "family")):
        return PEOPLE
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
