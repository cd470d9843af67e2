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
    """The forty objects (`noun` of the everyday table, `word` to ask for) that are measured."""
    return json.loads((HERE / "eval_objects.json").read_text())


def held_out_icons(subjects: list[Subject], seed: int) -> set[tuple[str, str]]:
    """(set, name) of the icons that stay out of training.

    One icon of each measured object, in the style of noto or emojione where it has both and two
    more; and one in twenty of all others that at least two other sets also draw.
    """
    groups = defaultdict(list)  # the same emoji in several sets
    for subject in subjects:
        groups[subject.icon.hexcode or subject.icon.name].append(subject)
    rng = np.random.default_rng(seed)
    out = set()
    measured = [row["noun"] for row in read_eval_objects()]
    for noun in measured:
        drawn = [g for g in groups.values() if any(s.noun and s.noun.noun == noun for s in g)]
        if not drawn:
            raise BuildError(f"eval_objects.json: no icon shows {noun}; add it to everyday.json")
        first = drawn[0][0].noun.icons[0]
        group = next((g for g in drawn if any(s.icon.name == first for s in g)), drawn[0])
        sets = [s.icon.set for s in group]
        wanted = [s for s in ("emojione", "noto") if s in sets and len(sets) >= 4] or sets
        chosen = group[sets.index(str(rng.choice(wanted)))]
        out.add((chosen.icon.set, chosen.icon.name))
    for group in groups.values():
        if len(group) < 3 or (group[0].noun and group[0].noun.noun in measured):
            continue
        for subject in group:
            if rng.random() < RANDOM_SHARE:
                out.add((subject.icon.set, subject.icon.name))
                break
    return out
