"""Augmented pictures of icons, each with a caption that is true of it."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .captions import (
    MORE_STYLES,
    NEW_STYLES,
    STYLES,
    has_colour,
    takes_no_article,
    the_thing,
    without_colour,
)
from .colour import (
    ACHROMATIC,
    TONES,
    MainColour,
    lch_to_rgb,
    main_colour,
    recolour,
    rgb_to_lch,
)
from .nouns import Subject
from .sources import render
from .split import HELD_OUT_PAIRS
from .wording import STYLED, Thing, caption

RECOLOURED = 0.65  # share of pictures in other colours than the icon's own
COLOURED_BACKGROUND = 0.38
TRIES = 3  # colours to try before an icon keeps its own
HELD_OUT_SCALE = 0.92
OTHER_WORDS = 0.3  # share of captions with one of an icon's own other words
BIG, NAMED_BIG = 0.85, 0.06  # scale from which a thing may be called big; share so called

# Object colours with their odds; people ask for hues more often than for grays.
_ODDS = {name: 1.0 for name in TONES} | {"brown": 0.7, "black": 0.8, "white": 0.6, "gray": 0.6}
# Names with these words have a left and a right, or writing.
_ONE_WAY = frozenset({
    "left", "right", "clock", "oclock", "watch", "stopwatch", "note", "notes", "question",
    "calendar", "keyboard", "score", "medal", "newspaper", "dvd", "sign", "book", "banknote",
    "chart", "bank", "hospital", "school", "post", "store", "hundred", "ticket", "tickets",
    "keys", "disk", "pool", "eight", "spiral", "ballot", "delivery", "oncoming", "hotel", "map",
    "globe", "tear", "zzz", "mail",
})  # fmt: skip
# … and so have these, of which only `vocabulary` knows.
_ONE_WAY_GROUPS = frozenset({
    "flag", "country-flag", "subdivision-flag", "keycap", "alphanum", "time", "zodiac", "religion",
    "math", "punctuation", "other-symbol", "arrow", "av-symbol", "currency",
})  # fmt: skip
_MOONS = frozenset({"quarter", "waning", "waxing"})


@dataclass(frozen=True)
class Row:
    """One line of `metadata.jsonl`. Icon, set, noun and colour are those of the first thing."""

    caption: str
    split: str
    kind: str  # "one" as large as fits, "placed", "two", "several"
    icon: str
    set: str
    noun: str | None
    colour: str | None
    background: str | None
    things: tuple[Thing, ...]  # what the caption says


@dataclass(frozen=True)
class Drawing:
    """An icon in the colours that it gets, and the words for it."""

    pixels: np.ndarray  # uint8 RGBA (side, side, 4)
    main: MainColour
    thing: Thing  # with its colour, where that is to be said
    word: str
    bare: bool  # the word takes no article
    changed: bool  # it has other colours than the icon's own


def icon_rng(subject: Subject, seed: int) -> np.random.Generator:
    """Random numbers of one icon: the same however many processes share the work."""
    name = f"{subject.icon.set}/{subject.icon.name}"
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def held_out(subject: Subject, size: int) -> tuple[np.ndarray, Row]:
    """Draw the icon as it is, on white, centred: uint8 (size, size, 3), and its plain caption."""
    picture = np.asarray(render(subject.icon, round(size * HELD_OUT_SCALE)))
    canvas = np.full((size, size, 3), 255, np.uint8)
    paste(canvas, picture, (size - len(picture)) // 2, (size - len(picture)) // 2)
    text, thing = plain_caption(subject), Thing(name_of(subject))
    return canvas, row(subject, "held_out", "one", text, None, None, (thing,))


def plain_caption(subject: Subject) -> str:
    """Call an icon by its first word: "a car"."""
    return the_thing(*_first_word(subject))


def row(
    subject: Subject,
    split: str,
    kind: str,
    text: str,
    colour: str | None,
    background: str | None,
    things: tuple[Thing, ...],
) -> Row:
    """Build the metadata row of a picture whose first thing is `subject`."""
    noun = subject.noun.noun if subject.noun else None
    icon = subject.icon
    return Row(text, split, kind, icon.name, icon.set, noun, colour, background, things)


def name_of(subject: Subject) -> str:
    """Return the noun that stands for all words of a thing, or its label where there is none."""
    return subject.noun.noun if subject.noun else subject.label


def single(
    subject: Subject,
    master: Image.Image,
    size: int,
    rng: np.random.Generator,
    styled: float | None = None,
    style: str | None = None,
) -> tuple[np.ndarray, Row]:
    """Draw the icon as large as fits, or a little smaller: uint8 (size, size, 3), and its row.

    `styled` is the share of captions that name the style, if not the subject's; `style` its word,
    if not the set's own.
    """
    canvas, drawing, background = alone(subject, master, size, rng)
    styled = styled_of(subject, not drawing.changed) if styled is None else styled
    things = [(drawing.thing, drawing.word, drawing.bare)]
    text, named = caption(rng, things, None, background, style or style_of(subject), styled)
    return canvas, row(subject, "train", "one", text, drawing.thing.colour, background, named)


def alone(
    subject: Subject, master: Image.Image, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, Drawing, str | None]:
    """Return the picture of ``single``, what is drawn, and its background's colour, if any."""
    scale = rng.uniform(0.85, 0.98) if rng.random() < 0.8 else rng.uniform(0.72, 1.0)
    big = scale > BIG and rng.random() < NAMED_BIG
    drawing = draw(subject, master, round(size * scale), rng, size="big" if big else None)
    background, tone = choose_background([drawing.main], rng)
    canvas = np.full((size, size, 3), tone, np.uint8)
    room = size - len(drawing.pixels)
    left, top = np.rint(room * (0.5 + rng.normal(0, 0.15, 2).clip(-0.5, 0.5))).astype(int)
    paste(canvas, drawing.pixels, int(left), int(top))
    return canvas, drawing, background


def style_of(subject: Subject) -> str:
    """Return the word for the look of its set."""
    return (STYLES | MORE_STYLES | NEW_STYLES)[subject.icon.set]


def styled_of(subject: Subject, plain: bool = False) -> float:
    """Return the share of its captions that name the style.

    plain: of large pictures in its own colours.
    """
    return STYLED if subject.styled is None else subject.styled[0 if plain else 1]


def draw(
    subject: Subject,
    master: Image.Image,
    side: int,
    rng: np.random.Generator,
    **described: Any,
) -> Drawing:
    """Draw the icon, maybe mirrored and in another colour, with `side` pixels a side.

    `described` is what the caption shall name beside its colour: fields of Thing.
    """
    picture = _shrink(master, side)
    if rng.random() < 0.5 and not one_way(subject):
        picture = ImageOps.mirror(picture)
    pixels, main, changed = _colours(subject, np.asarray(picture), rng)
    named = _named_colour(subject, main, changed, rng)
    word, bare = _word(subject, named, changed, rng)
    return Drawing(pixels, main, Thing(name_of(subject), named, **described), word, bare, changed)


def one_way(subject: Subject) -> bool:
    """Whether a mirror image would be of something else, or unreadable."""
    words = set(subject.icon.name.split("-"))
    if subject.subgroup in _ONE_WAY_GROUPS or (subject.subgroup and words & _MOONS):
        return True
    return bool(words & _ONE_WAY)


def _colours(
    subject: Subject,
    pixels: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, MainColour, bool]:
    """Pixels, their main colour and whether they were recoloured."""
    # Every second pixel each way is enough to measure and to try colours with.
    sample = pixels[::2, ::2]
    blue_aside = subject.noun is not None and subject.noun.blue_aside
    main = main_colour(sample, blue_aside)
    multicoloured = main.hue is None and main.chroma > 0
    if subject.fixed or multicoloured or rng.random() >= RECOLOURED:
        return pixels, main, False
    noun = name_of(subject)
    names = [n for n in TONES if n != main.name and (noun, n) not in HELD_OUT_PAIRS]
    odds = np.array([_ODDS[n] for n in names])
    for target in rng.choice(names, TRIES, replace=False, p=odds / odds.sum()):
        tone = jitter(str(target), rng)
        # Blue is the thing's own colour now, not only its windows'.
        after = main_colour(recolour(sample, main, tone), blue_aside and target != "blue")
        if main.name and target in ACHROMATIC:
            # What made it "a red car" is black now; its gray windows do not hide the name.
            after = MainColour(tone[0], 0.0, None, str(target))
        if after.name == target:
            return recolour(pixels, main, tone), after, True
    # An unclear result teaches a wrong word: the icon keeps its own colours instead.
    return pixels, main, False


def jitter(name: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Draw a tone of the colour `name`, a little off its typical one; grays stay without hue."""
    lightness, chroma, hue = TONES[name]
    lightness = min(lightness + rng.uniform(-0.035, 0.03), 0.985)
    if not chroma:
        return lightness, 0.0, 0.0
    return lightness, chroma * rng.uniform(0.85, 1.1), hue + rng.uniform(-5, 5)


def _named_colour(
    subject: Subject,
    main: MainColour,
    changed: bool,
    rng: np.random.Generator,
) -> str | None:
    """Choose the colour for the caption: always of a recoloured icon, of others every second."""
    if changed:
        return main.name
    if subject.noun is not None and (subject.noun.noun, main.name) in HELD_OUT_PAIRS:
        return None  # the icon itself has it: shown, but never put together in words
    known = has_colour(subject.label)
    return None if known or subject.fixed or rng.random() < 0.5 else main.name


def choose_background(
    mains: Sequence[MainColour], rng: np.random.Generator
) -> tuple[str | None, tuple[int, int, int]]:
    """Word for the background (None where it goes without saying) and its sRGB colour.

    All things of the main colours `mains` stand out from it.
    """
    pale = any(main.lightness > 0.9 and main.chroma < 0.04 for main in mains)
    if rng.random() >= COLOURED_BACKGROUND and not pale:
        return ("white" if rng.random() < 0.1 else None), (255, 255, 255)
    while True:
        name = str(rng.choice([n for n in TONES if n != "white"]))
        tone = background_tone(name, rng)
        if all(name != main.name and _contrast(main, tone) > 0.16 for main in mains):
            return name, tone


def background_tone(name: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw an sRGB tone of the colour `name`, jittered like the objects' colours."""
    red, green, blue = lch_to_rgb(np.array(jitter(name, rng), np.float32))
    return int(red), int(green), int(blue)


def _contrast(main: MainColour, tone: tuple[int, int, int]) -> float:
    """Distance in OKLab between an object's main colour and a background."""
    lightness, chroma, hue = rgb_to_lch(np.array(tone, np.uint8)).tolist()
    ours = main.chroma * np.exp(1j * np.radians(main.hue or 0.0))
    plane = abs(ours - chroma * np.exp(1j * np.radians(hue)))
    return float(np.hypot(main.lightness - lightness, plane))


def _word(
    subject: Subject, colour: str | None, changed: bool, rng: np.random.Generator
) -> tuple[str, bool]:
    """Choose the caption's word for the thing, and whether that takes no article.

    A noun's first word in three captions of five, where the icon has no others; never a second
    colour ("a blue orange").
    """
    if subject.others and rng.random() < OTHER_WORDS:
        word = subject.others[int(rng.integers(len(subject.others)))]
        if not has_colour(word) or not (colour or changed):
            return word, takes_no_article(word)
    if subject.noun is None:
        label = without_colour(subject.label) if changed else subject.label
        return label, takes_no_article(label)
    words = subject.noun.words
    word = words[0]
    if len(words) > 1 and rng.random() < 0.4:
        word = str(rng.choice(words[1:]))
    if colour and has_colour(word):
        word = words[0]
    return word, word in subject.noun.bare


def _first_word(subject: Subject) -> tuple[str, bool]:
    if subject.noun is None:
        return subject.label, takes_no_article(subject.label)
    return subject.noun.words[0], subject.noun.words[0] in subject.noun.bare


def _shrink(picture: Image.Image, side: int) -> Image.Image:
    """RGBA picture at `side` pixels; colours are weighted by alpha, so edges stay clean."""
    return picture.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")


def paste(canvas: np.ndarray, pixels: np.ndarray, left: int, top: int) -> None:
    """Lay uint8 RGBA `pixels` over a part of `canvas`, uint8 (H, W, 3), in place."""
    height, width = pixels.shape[:2]
    region = canvas[top : top + height, left : left + width]
    alpha = pixels[..., 3:].astype(np.float32) / 255
    region[:] = np.rint(pixels[..., :3] * alpha + region * (1 - alpha)).astype(np.uint8)
