r"""A1111's prompt grammar: the weight of each word, and the steps that it is there for.

    (a)  a counts 1.1 times      [a:b:0.5]  a, and b after half of the steps
    [a]  a counts 1/1.1 times    [a:b:10]   a, and b after 10 steps
    (a:1.3)  a counts 1.3 times  [b:10], [a::10]  b from there on; a up to there
    \( \) \[ \] \\  as typed     [a|b|c]    a, b, c, a, ... in turns, one a step
    BREAK  starts a new chunk    a AND b:0.8  two texts and their weights, guided by both

Brackets nest, and their weights multiply. The weight of a bracket that is never closed counts up to
the end; brackets that are no well-formed ``[a:b:0.5]`` or ``[a|b]`` are weights.

A prompt is read in this order: ``split`` at AND, ``schedule`` each text (ldm.text.editing),
``weigh`` each result.
Source: AUTOMATIC1111's stable-diffusion-webui, as its documentation and its examples have it. Two
differences: a BREAK within brackets is a BREAK there, too (A1111 then draws the word), and a
weight that float() does not take, as in (a:1.2.3), is text (A1111 stops).
"""

from __future__ import annotations

import re
import warnings
from typing import NamedTuple

from ldm.errors import ArgumentError

MAX_OPEN = 100  # brackets open at once; 1.1^100 is 13,781
MAX_LENGTH = 100_000  # characters of a prompt; a context of a hundred chunks is far shorter
MAX_TEXTS = 100  # joined by AND; each is a row of every call of the U-Net
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


class Span(NamedTuple):
    """A part of a prompt and how much it counts."""

    text: str
    weight: float


def split(prompt: str) -> list[Span]:
    """Split a prompt at AND into texts and their weights: ``a cat AND a dog:0.8``.

    As in A1111, a prompt without AND may also end in a weight; a warning says so, as "a screen of
    16:9" hardly means it.
    Raises ArgumentError for a weight too large, too many texts, and a prompt that is too long.
    """
    check_length(prompt)
    spans = []
    parts = AND.split(prompt)
    if len(parts) > MAX_TEXTS:
        raise ArgumentError(f"a prompt joins {len(parts)} texts by AND; at most {MAX_TEXTS} work")
    for part in parts:
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
    """Split a text at BREAK into chunks, each as spans; neighbouring spans differ in weight.

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
            check_depth(len(open_at["("]) + len(open_at["["]))
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
    """Multiply the factors over each span, in their order: inner brackets first."""
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
    """Merge neighbouring spans of one weight, drop empty ones, and split at BREAK."""
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


def check_length(text: str) -> None:
    """Raise ArgumentError for a prompt that is too long."""
    if len(text) > MAX_LENGTH:
        raise ArgumentError(
            f"a prompt has {len(text)} characters; at most {MAX_LENGTH} are read: shorten it"
        )


def check_depth(depth: int) -> None:
    """Raise ArgumentError for too many brackets open at once."""
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
