"""Which icons are worth learning, and the everyday words for what they show."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from .sources import BuildError, Icon, Label, read_icons, read_labels

HERE = Path(__file__).parent

# Subgroups of emojibase that are kept beyond the everyday table; people, signs, arrows, letters,
# zodiac and buttons are not: they are many, alike, and nobody asks for them first.
KEPT = (
    "face-", "cat-face", "monkey-face", "heart", "hand", "body-parts", "animal-", "plant-",
    "food-", "drink", "dishware", "place-", "transport-ground", "transport-water",
    "transport-air", "hotel", "sky-weather", "event", "award-medal", "sport", "game",
    "arts-crafts", "clothing", "musical-instrument", "phone", "computer", "light-video",
    "book-paper", "mail", "writing", "office", "lock", "tool", "science", "medical", "household",
    "other-object",
)  # fmt: skip
BESIDE = re.compile(r" (with|without|in|on|at|behind|over|and|facing|covering|making|taking) ")
# Near copies and drawings of letters or maps within the kept subgroups.
DROPPED = frozenset({
    "spade-suit", "heart-suit", "diamond-suit", "club-suit", "joker", "mahjong-red-dragon",
    "flower-playing-cards", "middle-finger", "globe-with-meridians", "map-of-japan", "love-hotel",
    "chart-increasing-with-yen", "new-moon", "waxing-crescent-moon", "first-quarter-moon",
    "waxing-gibbous-moon", "waning-gibbous-moon", "last-quarter-moon", "waning-crescent-moon",
    "rightwards-hand", "leftwards-hand", "milky-way", "face-with-symbols-on-mouth",
    "face-with-symbols-over-mouth", "head-shaking-vertically", "head-shaking-horizontally",
    "bus-stop", "motorway", "construction", "input-symbols",
})  # fmt: skip


@dataclass(frozen=True)
class Noun:
    """An everyday thing: its canonical noun, what people type for it, and the icons of it."""

    noun: str
    words: tuple[str, ...]
    icons: tuple[str, ...]
    bare: frozenset[str] = frozenset()  # words without an article
    common: bool = False  # one of the things that people ask for first
    fixed: bool = False  # keeps its colours, which are not named: people, landscapes
    keep: tuple[str, ...] = ()  # icons with much scenery, which are treated as if fixed
    blue_aside: bool = False  # its blue parts may be windows, water or sky, not the thing itself


@dataclass(frozen=True)
class Subject:
    """An icon together with what it shows: an everyday noun, or only its label."""

    icon: Icon
    label: str
    noun: Noun | None
    keeps_colours: bool = False  # a person or a sign, which nobody asks for in another colour
    others: tuple[str, ...] = ()  # words for this icon beside its noun's or its label
    subgroup: str = ""  # of Unicode, where `vocabulary` has read it
    # Shares of captions that name the style, if not wording.STYLED: of a large picture in the
    # icon's own colours, and of others, in which a style is harder to see.
    styled: tuple[float, float] | None = None

    def countable(self) -> "Subject":
        """Return it without the words whose plural is not formed at their end."""
        some = tuple(word for word in self.others if not BESIDE.search(word))
        return self if some == self.others else replace(self, others=some)

    @property
    def fixed(self) -> bool:
        """Whether it keeps its colours, and captions do not name them."""
        if self.noun is None:
            return self.keeps_colours
        return self.noun.fixed or self.icon.name in self.noun.keep


def read_everyday(path: Path = HERE / "everyday.json") -> list[Noun]:
    """Read the curated table. Raises BuildError where an icon belongs to two nouns."""
    nouns: list[Noun] = []
    owner: dict[str, str] = {}
    for row in json.loads(path.read_text()):
        lists = {key: tuple(row.get(key, ())) for key in ("words", "icons", "keep")}
        noun = Noun(**{**row, **lists, "bare": frozenset(row.get("bare", ()))})
        for name in noun.icons:
            if name in owner:
                raise BuildError(f"{path}: icon {name} is in {owner[name]} and in {noun.noun}")
            owner[name] = noun.noun
        nouns.append(noun)
    return nouns


def read_subjects(
    archives: dict[str, Path], emojibase: Path, everything: bool = False
) -> list[Subject]:
    """Read what the sets in `archives` show, of what is kept; names and codes are of `emojibase`.

    With `everything`, also people and signs, by what Unicode calls them.
    """
    labels = read_labels(emojibase)
    return choose(read_icons(archives, labels), labels, read_everyday(), everything)


def choose(
    icons: list[Icon], labels: dict[str, Label], nouns: list[Noun], everything: bool = False
) -> list[Subject]:
    """Return the icons to keep, with what they show; the order of `icons` stays."""
    by_name = {name: noun for noun in nouns for name in noun.icons}
    # Sets name the same emoji differently: an icon also belongs to a noun by its Unicode code.
    by_code = {icon.hexcode: by_name[icon.name] for icon in icons if icon.name in by_name}
    subjects = []
    for icon in icons:
        noun = by_name.get(icon.name) or (icon.hexcode and by_code.get(icon.hexcode))
        label = labels.get(icon.hexcode) if icon.hexcode else None
        kept = label and label.subgroup.startswith(KEPT) and icon.name not in DROPPED
        if noun:
            subjects.append(Subject(icon, noun.words[0], noun))
        elif kept or (everything and label):
            subjects.append(Subject(icon, label.text.replace(":", ""), None, not kept))
    return subjects
