"""Words of captions: articles, colours, styles."""

import re

from .colour import TONES

STYLES = {
    "fluent-emoji": "3d",
    "fluent-emoji-flat": "flat",
    "noto": "soft",
    "twemoji": "bold",
    "emojione": "detailed",
}
# Of sets that only the whole vocabulary has; evaluation asks for the five above.
MORE_STYLES = {"fluent-emoji-high-contrast": "silhouette", "game-icons": "silhouette"}
# Of a set that the model never saw: what `tools.builtin_model.build_style` has a LoRA learn.
NEW_STYLES = {"streamline-emojis": "outlined"}

# Words that sound other than they are spelt.
_AN = re.compile(r"^(?:[aeio]|u(?!ni|fo|kulele|se)|hour|x-)")
_BARE_OTHERS = frozenset({
    "fog", "foggy", "ginger", "oden", "milky", "sake", "mate", "fondue", "nail", "selfie",
    "falafel",
})  # fmt: skip
_COLOUR_WORDS = frozenset(TONES) | {"grey", "light blue", "dark"}


def article(phrase: str) -> str:
    """Return the article, "a" or "an", that `phrase` takes."""
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
