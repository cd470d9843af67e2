"""A prompt with choices as a tree, which draws one of its texts, or lists all.

``ldm.text.wildcards`` reads it.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from ldm.errors import ArgumentError

MOST_COMBINATIONS = 100_000
MOST_DEPTH = 50  # of choices in choices, counted through wildcards
MOST_LENGTH = 100_000  # characters of a text
WEIGHT = re.compile(r"\s*(\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})::\s*")


@dataclass(frozen=True, eq=False)
class Template:
    """A text with choices. size: characters at most; count: of texts; depth: of its choices."""

    parts: Sequence[str | Choice]
    size: int = field(init=False)
    count: int = field(init=False)
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        choices = [part for part in self.parts if not isinstance(part, str)]
        count = 1
        for choice in choices:
            count = min(count * choice.count, MOST_COMBINATIONS + 1)
        size = sum(len(p) if isinstance(p, str) else p.size for p in self.parts)
        depth = max((choice.depth for choice in choices), default=0)
        if size > MOST_LENGTH or depth > MOST_DEPTH:
            raise ArgumentError(
                f"choices nest deeper than {MOST_DEPTH}, or make a text longer than "
                f"{MOST_LENGTH:,} characters; use fewer"
            )
        for name, value in {"size": size, "count": count, "depth": depth}.items():
            object.__setattr__(self, name, value)

    def draw(self, rng: Random) -> str:
        """Draw a text."""
        return "".join(part if isinstance(part, str) else part.draw(rng) for part in self.parts)

    def texts(self) -> list[str]:
        """Return all texts."""
        every = [[part] if isinstance(part, str) else part.texts() for part in self.parts]
        return ["".join(texts) for texts in itertools.product(*every)]


@dataclass(frozen=True, eq=False)
class Choice:
    """Options with weights above 0, of which ``low`` to ``high`` are picked.

    separator: between them; None for one option, which is then drawn with the spaces around it.
    """

    options: Sequence[Template]
    weights: Sequence[float]
    low: int = 1
    high: int = 1
    separator: str | None = None
    size: int = field(init=False)
    count: int = field(init=False)
    depth: int = field(init=False)
    sums: Sequence[float] = field(init=False)

    def __post_init__(self) -> None:
        sizes = sorted((option.size for option in self.options), reverse=True)[: self.high]
        values = {
            "size": 1 + sum(sizes) + self.high * len(self.separator or ""),
            "count": number_of_picks([o.count for o in self.options], self.low, self.high),
            "depth": 1 + max(option.depth for option in self.options),
            "sums": list(itertools.accumulate(self.weights)),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def is_single(self) -> bool:
        """Whether one option is picked."""
        return self.separator is None

    def draw(self, rng: Random) -> str:
        """Draw a text. Only ``random()`` is used: other methods may change with Python."""
        if self.separator is None:
            place = bisect.bisect(self.sums, rng.random() * self.sums[-1])
            return self.options[min(place, len(self.options) - 1)].draw(rng)
        count = self.low + int(rng.random() * (self.high - self.low + 1))
        # The first of a race in exponential times is a weighted pick, the next one of the rest.
        times = [-math.log(1 - rng.random()) / weight for weight in self.weights]
        order = sorted(range(len(times)), key=times.__getitem__)[:count]
        return self.separator.join(self.options[i].draw(rng).strip() for i in order)

    def texts(self) -> list[str]:
        """Return all texts, picks in every order."""
        every = [option.texts() for option in self.options]
        if self.separator is None:
            return [text for texts in every for text in texts]
        return [
            self.separator.join(text.strip() for text in texts)
            for count in range(self.low, self.high + 1)
            for picked in itertools.permutations(every, count)
            for texts in itertools.product(*picked)
        ]


def number_of_picks(counts: Sequence[int], low: int, high: int) -> int:
    """Count the ordered picks of low to high options with ``counts`` texts each, up to a limit."""
    limit, orders = MOST_COMBINATIONS + 1, 1
    for picked in range(high):
        orders *= len(counts) - picked
        if orders >= limit:
            return limit
    picks = [1] + [0] * high  # unordered ones, by how many: elementary symmetric polynomials
    for count in counts:
        for k in range(high, 0, -1):
            picks[k] = min(picks[k] + picks[k - 1] * count, limit)
    return min(sum(picks[k] * math.factorial(k) for k in range(low, high + 1)), limit)


class Level:
    """A choice that is being read, or the whole template."""

    def __init__(self, pick: str | None = None, separator: str | None = None) -> None:
        self.pick, self.separator = pick, separator
        self.options: list[Template] = []
        self.weights: list[float] = []
        self.parts: list[str | Choice] = []  # of the option that is being read
        self.brackets = 0  # of those that are open in it

    def read(self, sign: str) -> bool:
        """Read ``[``, ``]``, ``|`` or ``}``; return whether it is one of the choice."""
        if sign in "[]":
            self.brackets = max(0, self.brackets + (1 if sign == "[" else -1))
        elif sign == "|" and not self.brackets:
            self.end_option()
            return True
        return sign == "}"

    def end_option(self) -> None:
        """Add the option that was read, unless it has the weight 0."""
        parts = [part for part in self.parts if part != ""]
        first = WEIGHT.match(parts[0]) if parts and isinstance(parts[0], str) else None
        weight = float(first[1]) if first else 1.0
        if first:
            parts[0] = first.string[first.end() :]
        if weight:
            self.options.append(Template(parts))
            self.weights.append(weight)
        self.parts = []

    def single(self) -> Choice:
        """Return a choice of one of the options."""
        return Choice(self.options, self.weights)

    def closed(self) -> Choice:
        """Return the choice that was read. Raises ArgumentError if it makes none."""
        if self.brackets:
            raise ArgumentError("a [ is never closed in a choice; close it, or write \\[ for text")
        self.end_option()
        if not self.options:
            raise ArgumentError("a choice has only options of weight 0; give one another weight")
        if self.pick is None:
            return self.single()
        options, weights = self.options, self.weights
        only = [part for part in options[0].parts if not isinstance(part, str) or part.strip()]
        if len(options) == len(only) == 1 and isinstance(only[0], Choice) and only[0].is_single:
            options, weights = [*only[0].options], [*only[0].weights]  # {2$$__animals__}
        return Choice(options, weights, *read_pick(self.pick, len(options)), self.separator or ", ")


def read_pick(text: str, count: int) -> tuple[int, int]:
    """Read "2", "1-3", "1-" or "-3": how many of ``count`` options are picked."""
    low, dash, high = text.partition("-")
    fewest = int(low or 1)
    most = int(high or count) if dash else fewest
    if not text or not fewest <= most or fewest > count:
        raise ArgumentError(
            f"{text}$$ picks from {count} options; write 1$$ to {count}$$, or 1-2$$"
        )
    return fewest, min(most, count)
