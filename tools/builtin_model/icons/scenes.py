"""Pictures composed of icons: one at a place, two things, up to four of one kind."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from .nouns import Subject
from .sources import Icon, render
from .split import HELD_OUT_TOGETHER
from .variants import (
    Row,
    choose_background,
    draw,
    icon_rng,
    name_of,
    paste,
    row,
    single,
    style_of,
    styled_of,
)
from .wording import PLACES, caption

# Shares of the kinds of pictures: of common things, of other everyday things, of the rest, which
# are seldom composed, as people ask for what they know.
KINDS = ("one", "placed", "two", "several")
COMMON, EVERYDAY, OTHER = (0.42, 0.14, 0.26, 0.18), (0.6, 0.12, 0.16, 0.12), (0.85, 0.15, 0.0, 0.0)

PLACED_SCALE = (0.3, 0.52)  # of the picture's side
PLACE_ODDS = {name: 0.15 if " " not in name else 0.0625 for name in PLACES}
NAMED_PLACE, NAMED_SIZE = 0.7, 0.6
TWO_SCALE, COUNT_SCALE, ROW_SCALE = (0.38, 0.46), (0.35, 0.43), (0.26, 0.3)
SIDE_BY_SIDE = 0.75  # of two things; else one above the other
NAMED_RELATION = 0.4
JITTER = 0.012  # of places, as a part of the side

A, B = 0.26, 0.74  # middles of the two halves
LAYOUTS = {  # middles (x, y) of so many things of a kind
    2: [[(A, 0.5), (B, 0.5)], [(A, 0.5), (B, 0.5)], [(0.5, A), (0.5, B)], [(A, A), (B, B)]],
    3: [[(A, B), (0.5, A), (B, B)], [(A, A), (0.5, B), (B, A)]],
    4: [[(A, A), (B, A), (A, B), (B, B)]],
}
ROW = [(0.18, 0.5), (0.5, 0.5), (0.82, 0.5)]


class Stock:
    """The things that stand beside another: everyday ones of training, common ones most often.

    Both are from one set, so that the word for its style is true of both.
    """

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.groups: dict[str, list[Subject]] = defaultdict(list)
        for subject in subjects:
            if subject.noun is not None:
                self.groups[subject.icon.set].append(subject)
        self.odds = {name: _odds(group) for name, group in self.groups.items()}

    def draw(self, beside: Subject, rng: np.random.Generator) -> Subject:
        """Draw a thing to stand beside another; never the same noun, nor a pair held out."""
        group, odds = self.groups[beside.icon.set], self.odds[beside.icon.set]
        while True:
            found = group[int(rng.choice(len(odds), p=odds))]
            pair = frozenset((name_of(found), name_of(beside)))
            if len(pair) == 2 and pair not in HELD_OUT_TOGETHER:
                return found


def _odds(subjects: Sequence[Subject]) -> np.ndarray:
    """Every noun as often as others of its kind, common ones four times as often."""
    icons = defaultdict(int)
    for subject in subjects:
        icons[subject.noun.noun] += 1
    odds = np.array([(4 if s.noun.common else 1) / icons[s.noun.noun] for s in subjects])
    return odds / odds.sum()


def pictures(
    subject: Subject,
    count: int,
    size: int,
    seed: int,
    stock: Stock,
    shares: np.ndarray | None = None,
) -> tuple[np.ndarray, list[Row]]:
    """`count` pictures uint8 (count, size, size, 3) with `subject` in them, and their rows.

    `shares` of KINDS among them; by default those of `kinds`.
    """
    rng = icon_rng(subject, seed)
    # Drawn once, larger than any use, so that every scale is a sharp reduction.
    master = render(subject.icon, size + size // 2)
    shares = kinds(subject) if shares is None else shares
    images, rows = np.empty((count, size, size, 3), np.uint8), []
    for i in range(count):
        kind = KINDS[int(rng.choice(len(KINDS), p=shares))]
        if kind == "one":
            images[i], found = single(subject, master, size, rng)
        elif kind == "placed":
            images[i], found = placed(subject, master, size, rng)
        elif kind == "two":
            images[i], found = two(subject, master, size, rng, stock)
        else:
            images[i], found = several(subject, master, size, rng)
        rows.append(found)
    return images, rows


def kinds(
    subject: Subject,
    common: tuple[float, ...] = COMMON,
    everyday: tuple[float, ...] = EVERYDAY,
) -> np.ndarray:
    """Return the shares of KINDS among a subject's pictures; "bread" cannot be counted.

    common, everyday: the shares of things of these ranks; other subjects stand alone.
    """
    if subject.noun is None:
        return np.array(OTHER)
    shares = np.array(common if subject.noun.common else everyday)
    if set(subject.noun.words) & subject.noun.bare:
        shares[0] += shares[3]
        shares[3] = 0
    return shares


def placed(
    subject: Subject, master: Image.Image, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, Row]:
    """Compose a small picture of one thing; the caption names its size, its place, or both."""
    place = str(rng.choice(list(PLACE_ODDS), p=list(PLACE_ODDS.values())))
    names_place = rng.random() < NAMED_PLACE
    small = "small" if not names_place or rng.random() < NAMED_SIZE else None
    side = round(size * rng.uniform(*PLACED_SCALE))
    drawing = draw(subject, master, side, rng, size=small, place=place if names_place else None)
    background, tone = choose_background([drawing.main], rng)
    canvas = np.full((size, size, 3), tone, np.uint8)
    # The words for a place cover the outer or the middle part of the room that is free.
    at = np.array(PLACES[place][0]) * 0.84 + 0.08 + rng.uniform(-0.08, 0.08, 2)
    left, top = np.rint((size - side) * at).astype(int)
    paste(canvas, drawing.pixels, int(left), int(top))
    things = [(drawing.thing, drawing.word, drawing.bare)]
    style = (style_of(subject), styled_of(subject))
    text, named = caption(rng, things, None, background, *style)
    return canvas, row(subject, "train", "placed", text, drawing.thing.colour, background, named)


def two(
    subject: Subject, master: Image.Image, size: int, rng: np.random.Generator, stock: Stock
) -> tuple[np.ndarray, Row]:
    """Two different things, apart; the caption may say which is where."""
    other = stock.draw(subject, rng)
    across, swapped = rng.random() < SIDE_BY_SIDE, rng.random() < 0.5
    sides = [round(size * rng.uniform(*TWO_SCALE)) for _ in range(2)]
    first = draw(subject, master, sides[0], rng)
    second = draw(other, master_of(other.icon, round(size * TWO_SCALE[1]) + 1), sides[1], rng)
    background, tone = choose_background([first.main, second.main], rng)
    canvas = np.full((size, size, 3), tone, np.uint8)
    for drawing, middle in zip((first, second), (B, A) if swapped else (A, B), strict=True):
        free = 0.5 + rng.uniform(-0.1, 0.1)
        put(canvas, drawing.pixels, (middle, free) if across else (free, middle), rng)
    relation = None
    if rng.random() < NAMED_RELATION:
        relation = (("left", "right") if across else ("top", "bottom"))[swapped]
    things = [(d.thing, d.word, d.bare) for d in (first, second)]
    style = (style_of(subject), styled_of(subject))
    text, named = caption(rng, things, relation, background, *style)
    return canvas, row(subject, "train", "two", text, first.thing.colour, background, named)


def several(
    subject: Subject, master: Image.Image, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, Row]:
    """Two to four of one kind, alike, apart; the caption says how many."""
    count = int(rng.integers(2, 5))
    in_row = count == 3 and rng.random() < 0.4
    layout = ROW if in_row else LAYOUTS[count][int(rng.integers(len(LAYOUTS[count])))]
    side = round(size * rng.uniform(*(ROW_SCALE if in_row else COUNT_SCALE)))
    drawing = draw(subject.countable(), master, side, rng)
    background, tone = choose_background([drawing.main], rng)
    canvas = np.full((size, size, 3), tone, np.uint8)
    for middle in layout:
        put(canvas, drawing.pixels, middle, rng)
    thing = dataclasses.replace(drawing.thing, count=count)
    things = [(thing, drawing.word, drawing.bare)]
    style = (style_of(subject), styled_of(subject))
    text, named = caption(rng, things, None, background, *style)
    return canvas, row(subject, "train", "several", text, thing.colour, background, named)


def put(
    canvas: np.ndarray, pixels: np.ndarray, middle: Sequence[float], rng: np.random.Generator
) -> None:
    """Paste with the middle near `middle` (x, y in [0, 1] of the canvas), wholly inside."""
    size, side = len(canvas), len(pixels)
    corner = np.rint(size * (np.array(middle) + rng.uniform(-JITTER, JITTER, 2)) - side / 2)
    left, top = corner.clip(0, size - side).astype(int)
    paste(canvas, pixels, int(left), int(top))


@lru_cache(maxsize=4000)
def master_of(icon: Icon, size: int) -> Image.Image:
    """Render the icon, cached: common things stand beside many others."""
    return render(icon, size)
