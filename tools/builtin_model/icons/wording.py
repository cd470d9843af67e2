"""Captions in plain English, in many wordings, and what each says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tools.builtin_model.phrases import plural

from .captions import article, the_thing

NUMBERS = {2: ("two", "two", "two", "2", "a pair of"), 3: ("three", "three", "three", "3"),
           4: ("four", "four", "four", "4")}  # fmt: skip
SIZES = {"small": ("small", "small", "tiny", "little"), "big": ("big", "big", "large", "huge")}
# A place in the picture → where its middle is, of the free room (x, y), and how one says so.
PLACES = {
    "left": ((0.0, 0.5), ("on the left", "on the left", "on the left side")),
    "right": ((1.0, 0.5), ("on the right", "on the right", "on the right side")),
    "top": ((0.5, 0.0), ("at the top", "at the top", "on the top")),
    "bottom": ((0.5, 1.0), ("at the bottom", "at the bottom", "on the bottom")),
    "middle": ((0.5, 0.5), ("in the middle", "in the middle", "in the center")),
    "top left": ((0.0, 0.0), ("at the top left", "in the top left corner")),
    "top right": ((1.0, 0.0), ("at the top right", "in the top right corner")),
    "bottom left": ((0.0, 1.0), ("at the bottom left", "in the bottom left corner")),
    "bottom right": ((1.0, 1.0), ("at the bottom right", "in the bottom right corner")),
}
# Of two things side by side or one above the other: said of the first named, if anything is.
RELATIONS = {
    "left": ("{a} to the left of {b}", "{a} on the left and {b} on the right", "{a} left of {b}"),
    "right": ("{a} to the right of {b}", "{a} on the right and {b} on the left"),
    "top": ("{a} above {b}", "{a} above {b}", "{a} on top of {b}", "{a} over {b}"),
    "bottom": ("{a} below {b}", "{a} under {b}", "{a} beneath {b}"),
    None: ("{a} and {b}", "{a} and {b}", "{a} and {b}", "{a} next to {b}", "{a} with {b}",
           "{a} beside {b}", "{a}, {b}"),
}  # fmt: skip
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top", None: None}

BARE_WORD = 0.14  # share of captions without the article
FRAMES = ("a picture of {}", "an icon of {}", "a drawing of {}", "an emoji of {}")
FRAMED, STYLED = 0.15, 0.5
GROUNDS = (
    (0.7, "{} on {the} background"), (0.1, "{} with {the} background"),
    (0.1, "{}, {colour} background"), (0.05, "{} on {colour}"),
    (0.05, "{} in front of {the} background"),
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """What a caption says of a thing; None is what it leaves open."""

    noun: str
    colour: str | None = None
    count: int = 1
    size: str | None = None  # a key of SIZES
    place: str | None = None  # a key of PLACES


def one_of(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """One of the wordings."""
    return choices[int(rng.integers(len(choices)))]


def phrase(rng: np.random.Generator, thing: Thing, word: str, bare: bool) -> str:
    """Phrase the thing alone: "a small red car", "three apples", "car in red".

    Args:
        rng: draws the wording.
        thing: what to say; its place is left to ``caption``.
        word: what to call it, in the singular unless ``bare``.
        bare: the word takes no article (plurals, "bread").
    """
    size = one_of(rng, SIZES[thing.size]) if thing.size else None
    after = thing.colour is not None and rng.random() < 0.04
    words = [size, None if after else thing.colour, many(word) if thing.count > 1 else word]
    text = " ".join(filter(None, words))
    if thing.count > 1:
        text = f"{one_of(rng, NUMBERS[thing.count])} {text}"
    else:
        text = the_thing(text, bare or rng.random() < BARE_WORD)
    return f"{text} in {thing.colour}" if after else text


def many(word: str) -> str:
    """Form the plural: "cars", "cups of coffee"."""
    head, of, rest = word.partition(" of ")
    return plural(head) + of + rest


def caption(
    rng: np.random.Generator,
    things: Sequence[tuple[Thing, str, bool]],
    relation: str | None,
    background: str | None,
    style: str,
    styled: float = STYLED,
) -> tuple[str, tuple[Thing, ...]]:
    """Write a caption; returns the things as it describes them, in the order of its words.

    Args:
        rng: draws the wording, the order of two things, and whether the style is named.
        things: one or two, each with the word for it and whether that takes no article.
        relation: where the first of two is, seen from the second, if that is to be said.
        background: its colour, if that is to be said.
        style: word for the look of the icon set.
        styled: share of captions that name it.
    """
    if len(things) == 2:
        if rng.random() < 0.5:
            things, relation = things[::-1], OPPOSITE[relation]
        a, b = (phrase(rng, *thing) for thing in things)
        text = one_of(rng, RELATIONS[relation]).format(a=a, b=b)
        places = (relation, OPPOSITE[relation])
        named = tuple(replace(t[0], place=p) for t, p in zip(things, places, strict=True))
    else:
        named, text = (things[0][0],), phrase(rng, *things[0])
    if rng.random() < FRAMED:
        text = one_of(rng, FRAMES).format(text)
    if len(named) == 1 and named[0].place:
        text += f" {one_of(rng, PLACES[named[0].place][1])}"
    if background:
        shares, forms = zip(*GROUNDS, strict=True)
        form = str(rng.choice(forms, p=shares))
        the = f"{article(background)} {background}"
        text = form.format(text, the=the, colour=background)
    return (f"{text}, {style}" if rng.random() < styled else text), named
