"""The fixed list of prompts that a model is measured with: 1,052 for the data set of seed 0.

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
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icons.captions import the_thing
from icons.colour import TONES
from icons.nouns import read_everyday
from icons.split import HELD_OUT_PAIRS, HELD_OUT_TOGETHER, read_eval_objects
from icons.wording import many
from ldm.errors import ArgumentError

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
WORDS = {row["noun"]: row["word"] for row in read_eval_objects()}
FORTY = list(WORDS)


@dataclass(frozen=True)
class Asked:
    """A thing that a prompt names: the noun of the everyday table, and its colour if any."""

    noun: str
    colour: str | None = None


@dataclass(frozen=True)
class Prompt:
    """The text, and what of it is measured."""

    text: str
    kind: str
    things: tuple[Asked, ...]  # one, or two of different nouns
    count: int = 1  # how many of one thing
    background: str | None = None  # a colour
    place: str | None = None  # a key of PLACES
    size: str | None = None  # one of SIZES

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
        return self.kind not in ("single", "synonym")


def prompts(count: int | None = None, others: Sequence[str] = ()) -> list[Prompt]:
    """`count` of the prompts, a fair sample of every kind, or all of them.

    Args:
        count: how many; the first are of all kinds by turns, so that fewer are still a sample.
        others: nouns to ask for beside the forty, in `single` and `synonym`.

    Raises ArgumentError for a count below 1 or above what there is.
    """
    kinds = defaultdict(list)
    for prompt in everything([*FORTY, *sorted(set(others) - set(FORTY))]):
        kinds[prompt.kind].append(prompt)
    placed = []
    for rows in kinds.values():
        # Every kind's own order is shuffled once, so that no part of it comes last.
        order = np.random.default_rng(0).permutation(len(rows))
        placed += [(i / len(rows), rows[j]) for i, j in enumerate(order)]
    found = [prompt for _, prompt in sorted(placed, key=lambda pair: pair[0])]
    if count is not None and not 1 <= count <= len(found):
        raise ArgumentError(f"--prompts is {count}; it must be in 1..{len(found)}")
    return found[:count]


def everything(nouns: Sequence[str]) -> list[Prompt]:
    """All prompts, kind after kind; `nouns` are those of `single` and `synonym`."""
    table = {noun.noun: noun for noun in read_everyday()}
    rows = []
    for noun in [*nouns, *FORTY]:  # the forty twice, from two seeds
        word = WORDS.get(noun, table[noun].words[0])
        text = the_thing(word, noun not in WORDS and word in table[noun].bare)
        rows.append(Prompt(text, "single", (Asked(noun),)))
    for index, noun in enumerate(FORTY):
        for colour in colour_order(index, noun)[:COLOURS]:
            rows.append(_one(noun, "colour", colour))
    for noun, colour in sorted(HELD_OUT_PAIRS):
        rows += [_one(noun, "new colour", colour)] * NEW_SEEDS
    rows += _pairs()
    for index, noun in enumerate(FORTY):
        for count in (1, 2, 3, 4):
            colour = colour_order(index, noun)[count] if (index + count) % 2 else None
            rows.append(_several(noun, count, colour))
    for noun in nouns:
        # The word of the prompts of the forty is not another one: "cup of coffee".
        for word in set_aside(table[noun].words[1:], WORDS.get(noun)):
            text = the_thing(word, word in table[noun].bare)
            rows.append(Prompt(text, "synonym", (Asked(noun),)))
    for index, noun in enumerate(FORTY):
        the = the_thing(WORDS[noun], bare=False)
        colour = colour_order(index, noun)[0]
        rows.append(
            Prompt(
                f"{the} on {the_thing(colour, bare=False)} background",
                "background",
                (Asked(noun),),
                background=colour,
            )
        )
        place, where = list(PLACES.items())[index % len(PLACES)]
        small = the_thing(f"small {WORDS[noun]}", bare=False)
        rows.append(Prompt(f"{small} {where}", "place", (Asked(noun),), place=place))
        size = SIZES[index % len(SIZES)]
        text = the_thing(f"{size} {WORDS[noun]}", bare=False)
        rows.append(Prompt(text, "size", (Asked(noun),), size=size))
    return rows


def set_aside(words: Sequence[str], word: str | None) -> list[str]:
    """`words` without `word`."""
    return [other for other in words if other != word]


def colour_order(index: int, noun: str) -> list[str]:
    """The colours in the order in which they are asked of object number `index`.

    Neighbouring objects begin elsewhere, so that every round asks for each colour about as often.
    Those that training never puts together with `noun` are left out.
    """
    names = list(TONES)
    # Steps of 4 and 3 go round all eleven colours.
    order = [names[(4 * i + 3 * index) % len(names)] for i in range(len(names))]
    return [colour for colour in order if (noun, colour) not in HELD_OUT_PAIRS]


def _one(noun: str, kind: str, colour: str) -> Prompt:
    text = the_thing(f"{colour} {WORDS[noun]}", bare=False)
    return Prompt(text, kind, (Asked(noun, colour),))


def _several(noun: str, count: int, colour: str | None) -> Prompt:
    word = f"{colour} {WORDS[noun]}" if colour else WORDS[noun]
    text = f"{NUMBERS[count - 1]} {many(word)}" if count > 1 else f"one {word}"
    return Prompt(text, "count", (Asked(noun, colour),), count=count)


def _pairs() -> list[Prompt]:
    rows = []
    for index, (a, b) in enumerate(sorted(sorted(pair) for pair in HELD_OUT_TOGETHER)):
        for number, form in enumerate(TOGETHER):
            first = colour_order(index + number, a)[0]
            second = next(c for c in colour_order(index + number + 1, b) if c != first)
            said = {
                "a": the_thing(WORDS[a], bare=False),
                "b": the_thing(WORDS[b], bare=False),
                "colour_a": the_thing(f"{first} {WORDS[a]}", bare=False),
                "colour_b": the_thing(f"{second} {WORDS[b]}", bare=False),
            }
            coloured = "colour" in form
            things = (Asked(a, first), Asked(b, second)) if coloured else (Asked(a), Asked(b))
            rows.append(Prompt(form.format(**said), "two", things))
    return rows
