"""The fixed list of prompts that a model is measured with."""

from dataclasses import dataclass

from icons.captions import the_thing
from icons.colour import TONES
from icons.split import HELD_OUT_PAIRS, read_eval_objects
from ldm.errors import ArgumentError


@dataclass(frozen=True)
class Prompt:
    """What is asked for: the text, the noun of the everyday table and the colour word in it."""

    text: str
    noun: str
    colour: str | None


def colour_order(index: int, noun: str) -> list[str]:
    """All colours in the order in which they are asked of object number `index`.

    Neighbouring objects begin elsewhere, so that every round asks for each colour about as often;
    a colour that training never put together with `noun` comes first.
    """
    names = list(TONES)
    # Steps of 4 and 3 go round all eleven colours.
    order = [names[(4 * i + 3 * index) % len(names)] for i in range(len(names))]
    return sorted(order, key=lambda colour: (noun, colour) not in HELD_OUT_PAIRS)


def prompts(count: int) -> list[Prompt]:
    """The first `count` prompts: all objects without a colour, then round by round with one more.

    Raises ArgumentError for a count below 1 or above what there is.
    """
    objects = read_eval_objects()
    most = len(objects) * (len(TONES) + 1)
    if not 1 <= count <= most:
        raise ArgumentError(f"--prompts is {count}; it must be in 1..{most}, objects x colours")
    rows = [Prompt(the_thing(row["word"], bare=False), row["noun"], None) for row in objects]
    orders = [colour_order(index, row["noun"]) for index, row in enumerate(objects)]
    for colours in zip(*orders, strict=True):  # one round: a colour for each object
        for row, colour in zip(objects, colours, strict=True):
            text = the_thing(f"{colour} {row['word']}", bare=False)
            rows.append(Prompt(text, row["noun"], colour))
    return rows[:count]
