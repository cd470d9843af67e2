"""The fixed list of prompts that a model is measured with: 2,527 for the data set of seed 0.

| kind | asks for | prompts |
| --- | --- | --- |
| single | every noun with a held-out icon (197 of them), and the forty objects once more | 237 |
| colour | the forty, each in five colours that training captions put together with it | 200 |
| new colour | the 22 pairs of object and colour that training never shows, four seeds each | 88 |
| two | the 30 pairs of objects that training never shows together, in six wordings | 180 |
| count | the forty, one to four of them, every second one in a colour | 160 |
| synonym | other words for the nouns of `single` | 67 |
| background | the forty, each on a colour | 40 |
| place | the forty, on the left, on the right, at the top or at the bottom | 40 |
| size | the forty, small and big by turns | 40 |
| style | every thing in the style that its held-out icon has | 209 |
| names | every noun that the classifier knows, twice | 1,266 |
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm.errors import ArgumentError
from tools.builtin_model.icons.captions import STYLES, the_thing
from tools.builtin_model.icons.colour import TONES
from tools.builtin_model.icons.nouns import Noun, read_everyday
from tools.builtin_model.icons.split import HELD_OUT_PAIRS, HELD_OUT_TOGETHER, read_eval_objects
from tools.builtin_model.icons.wording import many

COLOURS = 5  # asked of every object
NEW_SEEDS = 4  # pictures of each pair held out
NUMBERS = ("", "two", "three", "four")
# Of two objects; the colours come from the place of the pair in the list.
TOGETHER = (
    "{a} and {b}",
    "{b} and {a}",
    "{a} next to {b}",
    "{b} beside {a}",
    "{colour_a} and {colour_b}",
    "{colour_b} with {colour_a}",
)
PLACES = {"left": "on the left", "right": "on the right", "top": "at the top"}
PLACES["bottom"] = "at the bottom"
SIZES = ("small", "big")
KINDS = (
    "single", "colour", "new colour", "two", "count",
    "synonym", "background", "place", "size", "style", "names",
)  # fmt: skip
WORDS = {row["noun"]: row["word"] for row in read_eval_objects()}
FORTY = list(WORDS)


@dataclass(frozen=True)
class PromptThing:
    """A thing that a prompt names: the noun of the everyday table, and its colour if any."""

    noun: str
    colour: str | None = None


@dataclass(frozen=True)
class Prompt:
    """The text, and what of it is measured."""

    text: str
    kind: str
    things: tuple[PromptThing, ...]  # one, or two of different nouns
    count: int = 1  # how many of one thing
    background: str | None = None  # a colour
    place: str | None = None  # a key of PLACES
    size: str | None = None  # one of SIZES
    style: str | None = None  # a word of STYLES

    @property
    def noun(self) -> str:
        """The first thing's."""
        return self.things[0].noun

    @property
    def colour(self) -> str | None:
        """The first thing's."""
        return self.things[0].colour

    @property
    def composed(self) -> bool:
        """Whether no icon answers the prompt as it is: colours, numbers, pairs, places."""
        return self.kind not in ("single", "synonym", "style", "names")


def prompts(
    others: Sequence[str] = (),
    styled: Sequence[tuple[str, str]] = (),
    known: Sequence[str] = (),
) -> list[tuple[int, Prompt]]:
    """All prompts with their numbers, which are their seeds' places from the first one's.

    By turns of all kinds, so that the first are a fair sample, but for those of `style` and, last,
    of `names`: these were added later, and the earlier prompts keep their seeds.

    Args:
        others: nouns to ask for beside the forty, in `single` and `synonym`.
        styled: nouns and the icon sets in whose style to ask for them, in `style`.
        known: nouns to ask for twice, in `names`.
    """
    kinds = defaultdict(list)
    for prompt in everything([*FORTY, *sorted(set(others) - set(FORTY))], sorted(set(styled))):
        kinds[prompt.kind].append(prompt)
    last = kinds.pop("style", [])
    placed = []
    for rows in kinds.values():
        # Every kind's own order is shuffled once, so that no part of it comes last.
        order = np.random.default_rng(0).permutation(len(rows))
        placed += [(i / len(rows), rows[j]) for i, j in enumerate(order)]
    found = [prompt for _, prompt in sorted(placed, key=lambda pair: pair[0])]
    return list(enumerate(found + last + names(known)))


def names(nouns: Sequence[str]) -> list[Prompt]:
    """Ask for each noun once, then for each again; both times in the same shuffled order."""
    table = {noun.noun: noun for noun in read_everyday()}
    order = np.random.default_rng(0).permutation(len(nouns))
    once = [Prompt(called(table[nouns[i]]), "names", (PromptThing(nouns[i]),)) for i in order]
    return once * 2


def called(noun: Noun) -> str:
    """Return what a plain caption calls a thing: "a car"; of the forty, by the word of WORDS."""
    word = WORDS.get(noun.noun, noun.words[0])
    return the_thing(word, noun.noun not in WORDS and word in noun.bare)


def choose(
    rows: list[tuple[int, Prompt]], kinds: Sequence[str] = KINDS, count: int | None = None
) -> list[tuple[int, Prompt]]:
    """Return the first `count` prompts of these kinds, or all.

    Raises ArgumentError for a count below 1 or above what there is.
    """
    found = [(number, prompt) for number, prompt in rows if prompt.kind in kinds]
    if count is not None and not 1 <= count <= len(found):
        raise ArgumentError(f"--prompts is {count}; it must be in 1..{len(found)}")
    return found[:count]


def everything(nouns: Sequence[str], styled: Sequence[tuple[str, str]] = ()) -> list[Prompt]:
    """All prompts, kind after kind; `nouns` are those of `single` and `synonym`."""
    table = {noun.noun: noun for noun in read_everyday()}
    rows = []
    for noun in [*nouns, *FORTY]:  # the forty twice, from two seeds
        rows.append(Prompt(called(table[noun]), "single", (PromptThing(noun),)))
    for index, noun in enumerate(FORTY):
        for colour in colour_order(index, noun)[:COLOURS]:
            rows.append(_one(noun, "colour", colour))
    for noun, colour in sorted(HELD_OUT_PAIRS):
        rows += [_one(noun, "new colour", colour)] * NEW_SEEDS
    rows += _pairs()
    for index, noun in enumerate(FORTY):
        for count in (1, 2, 3, 4):
            order = colour_order(index, noun)
            rows.append(_several(noun, count, order[count] if (index + count) % 2 else None))
    for noun in nouns:
        # The word of the prompts of the forty is not another one: "cup of coffee".
        for word in set_aside(table[noun].words[1:], WORDS.get(noun)):
            text = the_thing(word, word in table[noun].bare)
            rows.append(Prompt(text, "synonym", (PromptThing(noun),)))
    for index, noun in enumerate(FORTY):
        the = the_thing(WORDS[noun], bare=False)
        colour = colour_order(index, noun)[0]
        rows.append(
            Prompt(
                f"{the} on {the_thing(colour, bare=False)} background",
                "background",
                (PromptThing(noun),),
                background=colour,
            )
        )
        place, where = list(PLACES.items())[index % len(PLACES)]
        small = the_thing(f"small {WORDS[noun]}", bare=False)
        rows.append(Prompt(f"{small} {where}", "place", (PromptThing(noun),), place=place))
        size = SIZES[index % len(SIZES)]
        text = the_thing(f"{size} {WORDS[noun]}", bare=False)
        rows.append(Prompt(text, "size", (PromptThing(noun),), size=size))
    for noun, icon_set in styled:
        style = STYLES[icon_set]
        text = f"{called(table[noun])}, {style}"
        rows.append(Prompt(text, "style", (PromptThing(noun),), style=style))
    return rows


def set_aside(words: Sequence[str], word: str | None) -> list[str]:
    """`words` without `word`."""
    return [other for other in words if other != word]


def colour_order(index: int, noun: str) -> list[str]:
    """Return the colours of the prompts for object number `index`, in order.

    Neighbouring objects begin elsewhere, so that every round asks for each colour about as often.
    Those that training never puts together with `noun` are left out.
    """
    names = list(TONES)
    # Steps of 4 and 3 go round all eleven colours.
    order = [names[(4 * i + 3 * index) % len(names)] for i in range(len(names))]
    return [colour for colour in order if (noun, colour) not in HELD_OUT_PAIRS]


def _one(noun: str, kind: str, colour: str) -> Prompt:
    text = the_thing(f"{colour} {WORDS[noun]}", bare=False)
    return Prompt(text, kind, (PromptThing(noun, colour),))


def _several(noun: str, count: int, colour: str | None) -> Prompt:
    word = f"{colour} {WORDS[noun]}" if colour else WORDS[noun]
    text = f"{NUMBERS[count - 1]} {many(word)}" if count > 1 else f"one {word}"
    return Prompt(text, "count", (PromptThing(noun, colour),), count=count)


def _pairs() -> list[Prompt]:
    rows = []
    for index, (a, b) in enumerate(sorted(sorted(pair) for pair in HELD_OUT_TOGETHER)):
        for number, form in enumerate(TOGETHER):
            first = colour_order(index + number, a)[0]
            second = next(c for c in colour_order(index + number + 1, b) if c != first)
            words = {
                "a": the_thing(WORDS[a], bare=False),
                "b": the_thing(WORDS[b], bare=False),
                "colour_a": the_thing(f"{first} {WORDS[a]}", bare=False),
                "colour_b": the_thing(f"{second} {WORDS[b]}", bare=False),
            }
            coloured = "colour" in form
            of_a, of_b = (first, second) if coloured else (None, None)
            things = (PromptThing(a, of_a), PromptThing(b, of_b))
            rows.append(Prompt(form.format(**words), "two", things))
    return rows
