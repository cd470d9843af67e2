"""Captions in plain English: articles, colours, backgrounds, styles."""

import re

import numpy as np

from .colour import TONES

STYLES = {
    "fluent-emoji": "3d",
    "fluent-emoji-flat": "flat",
    "noto": "soft",
    "twemoji": "bold",
    "emojione": "detailed",
}
# (probability, form); {the} is the thing with its article, {thing} without.
TEMPLATES = (
    (0.70, "{the}"),
    (0.14, "{thing}"),
    (0.08, "a picture of {the}"),
    (0.08, "an icon of {the}"),
)
STYLE_PROBABILITY = 0.25

# Words that sound other than they are spelt.
_AN = re.compile(r"^(?:[aeio]|u(?!ni|fo|kulele|se)|hour|x-)")
_BARE_OTHERS = frozenset("fog foggy ginger oden milky sake mate fondue nail selfie falafel".split())
_COLOUR_WORDS = frozenset(TONES) | {"grey", "light blue", "dark"}


def article(phrase: str) -> str:
    """The word "a" or "an", whichever `phrase` takes."""
    return "an" if _AN.match(phrase.lower()) else "a"


def takes_no_article(label: str) -> bool:
    """Whether a name of no table (`folded hands`, `fog`) reads better without "a"."""
    head = re.split(r" (?:with|of|on|in|behind|over|and) ", label)[0].split()[-1]
    first = label.split()[0]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is"))
    return plural or first in _BARE_OTHERS or first.endswith("’s")


def without_colour(label: str) -> str:
    """`label` without words for colours: a rotated "red envelope" is an envelope."""
    words = [word for word in label.split() if word not in _COLOUR_WORDS]
    return " ".join(words) or label


def has_colour(label: str) -> bool:
    """Whether a word of `label` names a colour."""
    return any(word in _COLOUR_WORDS for word in label.split())


def the_thing(thing: str, bare: bool) -> str:
    """`thing` with its article, unless `bare`."""
    return thing if bare else f"{article(thing)} {thing}"


def caption(
    rng: np.random.Generator,
    word: str,
    *,
    bare: bool,
    colour: str | None,
    background: str | None,
    style: str,
) -> str:
    """One caption of a picture of `word`, such as "a red car on a yellow background, 3d".

    Args:
        rng: draws the form, and whether the style is named.
        word: what the picture shows, in the singular unless `bare`.
        bare: the word takes no article (plurals, "bread").
        colour: named before the word, if any.
        background: named after it, if any.
        style: word for the look of the icon set, added to a quarter of the captions.
    """
    thing = f"{colour} {word}" if colour else word
    form = rng.choice([form for _, form in TEMPLATES], p=[share for share, _ in TEMPLATES])
    text = str(form).format(the=the_thing(thing, bare), thing=thing)
    if background:
        text += f" on {article(background)} {background} background"
    return f"{text}, {style}" if rng.random() < STYLE_PROBABILITY else text
