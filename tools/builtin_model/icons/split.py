"""Which icons and which (noun, colour) pairs are kept from training, for measuring."""

import json
from collections import defaultdict

import numpy as np

from .nouns import HERE, Subject
from .sources import BuildError

# Never made nor captioned in training: does the model put the two together by itself?
HELD_OUT_PAIRS = frozenset(
    {
        ("banana", "purple"), ("car", "pink"), ("cat", "green"), ("dog", "blue"),
        ("house", "purple"), ("tree", "pink"), ("apple", "blue"), ("fish", "brown"),
        ("bus", "black"), ("horse", "purple"), ("elephant", "red"), ("frog", "orange"),
        ("mushroom", "blue"), ("umbrella", "brown"), ("guitar", "green"), ("star", "gray"),
        ("shoe", "yellow"), ("rocket", "green"), ("butterfly", "brown"), ("pizza", "blue"),
        ("bird", "pink"), ("lemon", "red"),
    }
)  # fmt: skip
# Never in one picture of training: does the model draw two things together that it never saw so?
HELD_OUT_TOGETHER = frozenset(
    frozenset(pair)
    for pair in (
        ("car", "tree"), ("cat", "house"), ("apple", "banana"), ("dog", "bicycle"),
        ("bird", "cactus"), ("fish", "umbrella"), ("star", "heart"), ("book", "key"),
        ("pizza", "cake"), ("horse", "flower"), ("rocket", "mushroom"), ("frog", "guitar"),
        ("owl", "bus"), ("train", "butterfly"), ("elephant", "airplane"), ("rabbit", "strawberry"),
        ("turtle", "lemon"), ("pig", "shoe"), ("truck", "hamburger"), ("sailboat", "coffee"),
        ("car", "dog"), ("house", "flower"), ("cat", "fish"), ("tree", "bird"),
        ("apple", "book"), ("bus", "star"), ("heart", "key"), ("umbrella", "rabbit"),
        ("cake", "coffee"), ("guitar", "horse"),
    )
)  # fmt: skip
RANDOM_SHARE = 0.05


def read_eval_objects() -> list[dict[str, str]]:
    """Read the forty measured objects: `noun` of the everyday table, `word` of the prompt."""
    return json.loads((HERE / "eval_objects.json").read_text())


def held_out_icons(subjects: list[Subject], seed: int) -> set[tuple[str, str]]:
    """(set, name) of the icons that stay out of training.

    One icon of each measured object, in the style of noto or emojione where it has both and two
    more; and one in twenty of all others that at least two other sets also draw.
    """
    by_emoji = defaultdict(list)  # the same emoji in several sets
    for subject in subjects:
        by_emoji[subject.icon.hexcode or subject.icon.name].append(subject)
    groups = list(by_emoji.values())
    rng = np.random.default_rng(seed)
    measured = [row["noun"] for row in read_eval_objects()]
    chosen = [_measured_icon(groups, noun, rng) for noun in measured]
    for group in groups:
        if len(group) < 3 or _noun(group[0]) in measured:
            continue
        # Draws stop at the first that is held out: the later ones depend on it.
        chosen += next(([one] for one in group if rng.random() < RANDOM_SHARE), [])
    return {(subject.icon.set, subject.icon.name) for subject in chosen}


def _measured_icon(groups: list[list[Subject]], noun: str, rng: np.random.Generator) -> Subject:
    """Choose the icon of a measured object to hold out: of its first emoji, in a wanted set."""
    drawn = [group for group in groups if noun in map(_noun, group)]
    if not drawn:
        raise BuildError(f"eval_objects.json: no icon shows {noun}; add it to everyday.json")
    shown = drawn[0][0].noun
    assert shown is not None  # the sets name what an emoji shows alike
    group = next((g for g in drawn if shown.icons[0] in [s.icon.name for s in g]), drawn[0])
    sets = [subject.icon.set for subject in group]
    wanted = [s for s in ("emojione", "noto") if s in sets and len(sets) >= 4] or sets
    return group[sets.index(str(rng.choice(wanted)))]


def _noun(subject: Subject) -> str | None:
    """Return the everyday noun of what an icon shows, if it has one."""
    return subject.noun.noun if subject.noun else None
