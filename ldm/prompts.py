r"""A1111's prompt grammar: text → which words count how much, and at which steps.

    (a)  a counts 1.1 times      [a:b:0.5]  a, and b after half of the steps
    [a]  a counts 1/1.1 times    [a:b:10]   a, and b after 10 steps
    (a:1.3)  a counts 1.3 times  [b:10], [a::10]  b from there on; a up to there
    \( \) \[ \] \\  as typed     [a|b|c]    a, b, c, a, ... in turns, one a step
    BREAK  starts a new chunk    a AND b:0.8  two texts and their weights, guided by both

Brackets nest, and weights then multiply. A bracket that is never closed counts up to the end, in
weights; everything that is no well-formed ``[a:b:0.5]`` or ``[a|b]`` is left to the weights.

A prompt is read in this order: ``split`` at AND, ``schedule`` each text, ``weigh`` each result.
Source: AUTOMATIC1111's stable-diffusion-webui, as its documentation and its examples have it. Two
differences: a BREAK within brackets is a BREAK there, too (A1111 then draws the word), and a
weight that float() does not take, as in (a:1.2.3), is text (A1111 stops).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ldm.errors import ArgumentError

MAX_LENGTH = 100_000  # characters of a prompt; a context of a hundred chunks is far shorter
MAX_OPEN = 100  # brackets open at once; 1.1^100 is 13,781
MAX_WEIGHT = 1e4  # times a state of the text encoder; float16 ends at 65,504

AND = re.compile(r"\bAND\b")
BREAK = re.compile(r"\bBREAK\b")
# The patterns take no time that is quadratic in the text's length: no two repeats in a row, and
# none at the start of a search, may take the same characters.
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
WEIGHTED = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)"
    rf"|:\s*(?P<weight>{NUMBER})\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)
SCHEDULED = re.compile(r"(?P<text>(?:[^\\\[\]():|]|\\.)+)|(?P<sign>[\[\]():|])")
WHEN = re.compile(rf"\s*({NUMBER}(?:[eE][+-]?\d+)?)\s*")
CLOSES = {"(": ")", "[": "]"}


class Span(NamedTuple):
    """A part of a prompt and how much it counts."""

    text: str
    weight: float


def split(prompt: str) -> list[Span]:
    """The texts that AND joins, with their weights: ``a cat AND a dog:0.8``.

    As in A1111, a prompt without AND may end in a weight, too; that is said by a warning, for
    "a screen of 16:9" hardly means it.
    Raises ArgumentError for a weight too large.
    """
    spans = []
    for part in AND.split(prompt):
        text, colon, weight = part.rpartition(":")
        if colon and re.fullmatch(NUMBER, weight.strip()):
            spans.append(Span(text.rstrip(), _checked(float(weight), part)))
            if part == prompt:
                warnings.warn(
                    f"the prompt ends in a weight for all of it, {weight.strip()}; where that is "
                    "text, end it in another character, such as a full stop",
                    stacklevel=2,
                )
        else:
            spans.append(Span(part.rstrip(), 1.0))
    return spans


def weigh(text: str) -> list[list[Span]]:
    """The chunks that BREAK makes of a text, each as its spans; neighbours differ in weight.

    Raises ArgumentError for brackets nested too deep, or a weight too large.
    """
    spans: list[Span | None] = []  # None is a BREAK
    open_at: dict[str, list[int]] = {"(": [], "[": []}  # where their contents begin
    factors: list[tuple[int, int, float]] = []  # of spans[begin:end], inner brackets first

    def close(kind: str, factor: float) -> None:
        factors.append((open_at[kind].pop(), len(spans), factor))

    for token in WEIGHTED.finditer(text):
        bracket, weight = token["bracket"], token["weight"]
        if bracket in ("(", "["):
            open_at[bracket].append(len(spans))
            _check_depth(len(open_at["("]) + len(open_at["["]))
        elif weight and open_at["("]:
            close("(", float(weight))
        elif bracket == ")" and open_at["("]:
            close("(", 1.1)
        elif bracket == "]" and open_at["["]:
            close("[", 1 / 1.1)
        elif token["escaped"] is not None:  # "" for a backslash before anything else
            spans.append(Span(token["escaped"], 1.0))
        else:
            first, *rest = BREAK.split(token[0])
            spans.append(Span(first.rstrip() if rest else first, 1.0))
            for part in rest:
                spans += [None, Span(part.strip(), 1.0)]
            if rest:
                spans[-1] = Span(rest[-1].lstrip(), 1.0)
    for kind, factor in (("(", 1.1), ("[", 1 / 1.1)):
        factors += [(begin, len(spans), factor) for begin in open_at[kind]]
    return _merge(spans, _weights(len(spans), factors), text)


def _weights(count: int, factors: list[tuple[int, int, float]]) -> list[float]:
    """The product of the factors over each span, in their order: inner brackets first."""
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for order, (begin, end, _) in enumerate(factors):
        begins.setdefault(begin, []).append(order)
        ends.setdefault(end, []).append(order)
    over: set[int] = set()  # the brackets that are open, at most MAX_OPEN
    weights, weight = [], 1.0
    for position in range(count):
        if position in begins or position in ends:
            over.update(begins.get(position, ()))
            over.difference_update(ends.get(position, ()))
            weight = 1.0
            for order in sorted(over):
                weight *= factors[order][2]
        weights.append(weight)
    return weights


def _merge(spans: list[Span | None], weights: list[float], text: str) -> list[list[Span]]:
    """Chunks of spans; neighbours of one weight become one span, and empty ones vanish."""
    chunks: list[list[Span]] = [[]]
    pieces: list[str] = []
    last = 1.0

    def flush() -> None:
        if joined := "".join(pieces):
            chunks[-1].append(Span(joined, _checked(last, text)))
        pieces.clear()

    for span, weight in zip(spans, weights, strict=True):
        if span is None:
            flush()
            chunks.append([])
        elif span.text:
            if weight != last:
                flush()
            pieces.append(span.text)
            last = weight
    flush()
    return chunks


def schedule(text: str, steps: int, steps_before: int = 0) -> list[tuple[int, str]]:
    """What a text is during a run: (last step that it is for, text), steps counted from 1.

    ``when`` of ``[a:b:when]`` is a fraction of ``steps`` if it has a dot, else a number of steps.
    steps_before: steps of a first pass that this one goes on from (A1111's "hires fix"): numbers
    then count from its start, and fractions are 1 at its end.
    Raises ArgumentError for a text that is too long, or brackets nested too deep.
    """
    if len(text) > MAX_LENGTH:
        raise ArgumentError(
            f"a prompt has {len(text)} characters; at most {MAX_LENGTH} are read: shorten it"
        )
    items = _parse(text)
    if items is None:
        return [(steps, text)]
    ends = {steps}
    for item in _walk(items):
        if isinstance(item, Turns):
            ends.update(range(1, steps + 1))
        else:
            ends.add(item.end(steps, steps_before))
    return [(end, _at(items, end, steps, steps_before)) for end in sorted(ends - {0})]


@dataclass(frozen=True)
class Switch:
    """``[before:after:when]``."""

    before: Items
    after: Items
    when: str

    def end(self, steps: int, steps_before: int) -> int:
        """The last step of ``before``; 0 if it has none."""
        value = float(self.when)
        if "." in self.when:
            value = (value - bool(steps_before)) * steps
        else:
            value -= steps_before
        return int(min(max(value, 0), steps))


@dataclass(frozen=True)
class Turns:
    """``[a|b|c]``."""

    options: list[Items]


Items = list[str | Switch | Turns]


@dataclass
class Group:
    """A bracket that is open: what came after it, in fields between signs ``:`` and ``|``."""

    bracket: str
    fields: list[Items] = field(default_factory=lambda: [[]])
    signs: str = ""

    @property
    def source(self) -> Items:
        """As it was typed, up to here."""
        items: Items = [self.bracket, *self.fields[0]]
        for sign, more in zip(self.signs, self.fields[1:], strict=True):
            items += [sign, *more]
        return items

    def closed(self) -> Items | None:
        """What it is once it is closed; None if it is nothing well-formed."""
        if self.signs == "" or (self.bracket, self.signs) == ("(", ":"):
            return [*self.source, CLOSES[self.bracket]]
        if self.bracket == "[" and set(self.signs) == {"|"}:
            return [Turns(self.fields)]
        if self.bracket == "[" and self.signs in (":", "::"):
            last = self.fields[-1]
            when = WHEN.fullmatch("".join(map(str, last))) if _plain(last) else None
            if when:
                before = self.fields[0] if self.signs == "::" else []
                return [Switch(before, self.fields[-2], when[1])]
        return None


def _parse(text: str) -> Items | None:
    """The text as a tree; None where A1111 reads nothing but plain text: a ``|`` out of place,
    or a backslash before the end of a line.

    A bracket that is not closed, or that is nothing well-formed, is text; so are then all brackets
    around it, which could hold only what is well-formed. That is why one pass is enough.
    """
    root: Items = []
    groups: list[Group] = []
    position = 0

    def give_up() -> bool:
        """All that is open is text; whether it may be."""
        for group in groups:
            root.extend(group.source)
        allowed = not any("|" in group.signs for group in groups)
        groups.clear()
        return allowed

    for token in SCHEDULED.finditer(text):
        if token.start() != position:
            return None
        position = token.end()
        sign = token["sign"]
        here = groups[-1].fields[-1] if groups else root
        if sign is None:
            here.append(token[0])
        elif sign in CLOSES:
            groups.append(Group(sign))
            _check_depth(len(groups))
        elif sign in ":|" and groups:
            groups[-1].signs += sign
            groups[-1].fields.append([])
        elif sign in ":|":
            if sign == "|":
                return None
            root.append(sign)
        else:
            fits = bool(groups) and CLOSES[groups[-1].bracket] == sign
            items = groups[-1].closed() if fits else None
            if items is not None:
                groups.pop()
                (groups[-1].fields[-1] if groups else root).extend(items)
            elif give_up():
                root.append(sign)
            else:
                return None
    return root if position == len(text) and give_up() else None


def _plain(items: Items) -> bool:
    return all(isinstance(item, str) for item in items)


def _walk(items: Items) -> Iterator[Switch | Turns]:
    """All that depends on the step, at any depth."""
    todo = list(items)
    while todo:
        item = todo.pop()
        if isinstance(item, Switch):
            todo += item.before + item.after
        elif isinstance(item, Turns):
            todo += [inner for option in item.options for inner in option]
        if not isinstance(item, str):
            yield item


def _at(items: Items, step: int, steps: int, steps_before: int) -> str:
    """The text at a step, counted from 1."""
    texts = []
    todo = items[::-1]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            texts.append(item)
            continue
        if isinstance(item, Turns):
            chosen = item.options[(step - 1) % len(item.options)]
        else:
            chosen = item.before if step <= item.end(steps, steps_before) else item.after
        todo += chosen[::-1]
    return "".join(texts)


def _check_depth(depth: int) -> None:
    if depth > MAX_OPEN:
        raise ArgumentError(
            f"a prompt has more than {MAX_OPEN} brackets open at once; close some, or write \\( "
            "and \\[ for those that are text"
        )


def _checked(weight: float, text: str) -> float:
    if not abs(weight) <= MAX_WEIGHT:
        shown = text.strip()[:60]
        raise ArgumentError(
            f"a weight in the prompt {shown!r} is {weight:g}; it must be at most {MAX_WEIGHT:g}: "
            "1 changes nothing, 1.5 is much"
        )
    return weight
