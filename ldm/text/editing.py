"""Prompt editing, ``[a:b:0.5]`` and ``[a|b]``: the text at each step; see ``ldm.text.grammar``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ldm.text.grammar import NUMBER, check_depth, check_length

TOKEN = re.compile(r"(?P<text>(?:[^\\\[\]():|]|\\.)+)|(?P<sign>[\[\]():|])")
WHEN = re.compile(rf"\s*({NUMBER}(?:[eE][+-]?\d+)?)\s*")
CLOSES = {"(": ")", "[": "]"}


def schedule(text: str, steps: int, steps_before: int = 0) -> list[tuple[int, str]]:
    """Return the texts of a run as (last step of the text, text), steps counted from 1.

    ``[a:b:3]`` is a for three steps, as A1111's documentation says; A1111's sampler counts from 0
    and takes a fourth. Every step counts once here; A1111 counts those of Heun and DPM2 twice.

    ``when`` of ``[a:b:when]`` is a fraction of ``steps`` if it has a dot, else a number of steps.
    steps_before: steps of a first pass that this one continues (A1111's "hires fix"): numbers then
    count from its start, and fractions are 1 at its end.
    Raises ArgumentError for a text that is too long, or brackets nested too deep.
    """
    check_length(text)
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
        """Return the last step of ``before``; 0 if it has none."""
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
class OpenBracket:
    """A bracket that is open: the text after it, in fields between the signs ``:`` and ``|``."""

    bracket: str
    fields: list[Items] = field(default_factory=lambda: [[]])
    signs: str = ""

    @property
    def source(self) -> Items:
        """The text as it was typed, up to here."""
        items: Items = [self.bracket, *self.fields[0]]
        for sign, more in zip(self.signs, self.fields[1:], strict=True):
            items += [sign, *more]
        return items

    def closed(self) -> Items | None:
        """Return what the closed bracket means; None if it is not well-formed."""
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
    """Parse the text into a tree; return None where A1111 takes all of it for plain text.

    A1111 does so for a ``|`` out of place and for a backslash before the end of a line.

    A bracket that is not closed or not well-formed is text; so are all brackets around it, which
    may contain only well-formed ones. That is why one pass is enough. A well-formed bracket beside
    such a one is always parsed; A1111's parser may or may not do so, by the order of its sets.
    """
    root: Items = []
    groups: list[OpenBracket] = []
    position = 0

    def give_up() -> bool:
        """Take all open brackets for text; return whether that is allowed."""
        for group in groups:
            root.extend(group.source)
        allowed = not any("|" in group.signs for group in groups)
        groups.clear()
        return allowed

    for token in TOKEN.finditer(text):
        if token.start() != position:
            return None
        position = token.end()
        sign = token["sign"]
        here = groups[-1].fields[-1] if groups else root
        if sign is None:
            here.append(token[0])
        elif sign in CLOSES:
            groups.append(OpenBracket(sign))
            check_depth(len(groups))
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
    """Yield everything that depends on the step, at any depth."""
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
    """Return the text at a step, counted from 1."""
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
