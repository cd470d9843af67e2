"""English phrases about things, colours and numbers, from a small grammar (data tools only)."""

import random
import re
from collections.abc import Sequence

from tools.builtin_model.icons.captions import STYLES, takes_no_article, the_thing
from tools.builtin_model.icons.colour import TONES

COLOURS = [
    *TONES, "grey", "turquoise", "teal", "cyan", "magenta", "violet", "gold", "silver", "beige",
    "light blue", "dark blue", "light green", "dark green",
]  # fmt: skip
SIZES = ["small", "big", "tiny", "huge", "little", "large", "tall"]
KINDS = [
    "old", "new", "cute", "happy", "sad", "shiny", "wooden", "plastic", "metal", "glass", "striped",
    "round", "angry", "sleeping", "smiling", "fluffy", "colorful", "simple",
]  # fmt: skip
NUMBERS = ["two", "three", "four", "five", "six", "2", "3", "4", "several", "many", "some"]
NUMBERS += ["a pair of", "a few", "a group of"]
RELATIONS = ["and", "and", "and", "with", "beside", "next to", "on", "on top of", "under", "below"]
RELATIONS += ["behind", "in front of", "above", "in", "inside", "left of", "to the right of"]
PLACES = ["on the left", "on the right", "at the top", "at the bottom", "in the middle"]
PLACES += ["in the centre", "in the corner", "on the left side", "in the top right corner"]
MEDIA = ["a photo of", "a picture of", "a drawing of", "an illustration of", "an icon of"]
MEDIA += ["an emoji of", "a painting of", "a cartoon of", "a 3d render of", "a sketch of"]
BACKGROUNDS = [" on {the} background"] * 3 + [" with {the} background", " on {colour}"]
BACKGROUNDS += [", {colour} background", " on {colour} background"]

IRREGULAR_PLURALS = {
    "child": "children",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "human": "humans",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "sheep": "sheep",
    "tooth": "teeth",
}
PLURAL_ENDINGS = [
    (r"man$", "men"),
    (r"(?<=[^aeiou])y$", "ies"),
    (r"(?<=lea|hal|cal|hel|loa|car|wol)f$", "ves"),
    (r"(?<=ni|wi|li)fe$", "ves"),
    (r"(?<=[sxz])$|(?<=ch|sh)$|(?<=tomato|potato)$", "es"),
    (r"$", "s"),
]


def plural(noun: str) -> str:
    """Form the plural of ``noun``, by its last word; "bread" and "glasses" stay as they are."""
    if takes_no_article(noun):
        return noun
    first, space, last = noun.rpartition(" ")
    many = IRREGULAR_PLURALS.get(last)
    if many is None:
        pattern, ending = next(rule for rule in PLURAL_ENDINGS if re.search(rule[0], last))
        many = re.sub(pattern, ending, last, count=1)
    return first + space + many


def thing(rng: random.Random, nouns: Sequence[str]) -> str:
    """Write a noun phrase, mostly with a colour: "a red car", "three small dogs on the left"."""
    # Squared, so that the first nouns, which are the commonest, are drawn more often.
    noun = nouns[int(len(nouns) * rng.random() ** 2)]
    colour = rng.choice(COLOURS) + " " if rng.random() < 0.6 else ""
    other = rng.choice(SIZES + KINDS) + " " if rng.random() < 0.2 else ""
    place = f" {rng.choice(PLACES)}" if rng.random() < 0.1 else ""
    bare = takes_no_article(noun)
    if not bare and rng.random() < 0.15:
        return f"{rng.choice(NUMBERS)} {other}{colour}{plural(noun)}{place}"
    described = other + colour + noun + place
    if rng.random() < 0.05:
        return f"the {described}"
    return the_thing(described, bare or rng.random() < 0.1)


def scene(rng: random.Random, nouns: Sequence[str]) -> str:
    """One or two things, maybe with a background, a medium ("a photo of ...") and a style."""
    text = thing(rng, nouns)
    if rng.random() < 0.35:
        text += f" {rng.choice(RELATIONS)} {thing(rng, nouns)}"
    if rng.random() < 0.25:
        colour = rng.choice(COLOURS)
        text += rng.choice(BACKGROUNDS).format(colour=colour, the=the_thing(colour, False))
    if rng.random() < 0.25:
        text = f"{rng.choice(MEDIA)} {text}"
    if rng.random() < 0.1:
        text += f", {rng.choice(list(STYLES.values()))}"
    return text
