"""Prompts of any length as chunks of 77 tokens with a weight each, as A1111 cuts them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ldm.errors import ArgumentError
from ldm.text.grammar import Span, weigh
from ldm.text.tokenizer import CLIPTokenizer

BACKTRACK = 20  # tokens after a comma that move to the next chunk so that they stay together
MAX_CHUNKS = 100  # of a prompt; each adds to a U-Net's time and memory


@dataclass
class Chunk:
    """Token ids from start to end token and padding, and the weight of each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass
class Cutter:
    """Takes the tokens of a prompt one after the other, and closes a chunk when it is full."""

    tokenizer: CLIPTokenizer
    chunks: list[Chunk] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # of the chunk that is open
    weights: list[float] = field(default_factory=list)
    after_comma: int | None = None  # where in it the text after the last comma begins

    @property
    def size(self) -> int:
        """Tokens in a chunk without start and end: 75."""
        return self.tokenizer.model_max_length - 2

    def add(self, unit: tuple[int, ...], weight: float) -> None:
        """Add ids that belong together; they are split only if no chunk could hold them."""
        if unit == (self.tokenizer.comma_token_id,):
            self.after_comma = len(self.ids) + 1
        elif len(self.ids) == self.size and self.after_comma is not None:
            begin = self.after_comma
            if len(self.ids) - begin < BACKTRACK:
                ids, weights = self.ids[begin:], self.weights[begin:]
                del self.ids[begin:], self.weights[begin:]
                self.close()
                self.ids, self.weights = ids, weights
        if self.ids and len(self.ids) + len(unit) > self.size:
            self.close()
        while unit:
            room = self.size - len(self.ids)
            part, unit = unit[:room], unit[room:]
            self.ids += part
            self.weights += [weight] * len(part)
            if unit:
                self.close()

    def close(self) -> None:
        """Fill the chunk up and begin the next one."""
        if len(self.chunks) == MAX_CHUNKS:
            raise ArgumentError(
                f"a prompt has more than {MAX_CHUNKS} chunks of {self.size} tokens; shorten it"
            )
        token, rest = self.tokenizer, self.size - len(self.ids)
        ids = (token.bos_token_id, *self.ids, token.eos_token_id, *[token.pad_token_id] * rest)
        self.chunks.append(Chunk(ids, (1.0, *self.weights, *[1.0] * (rest + 1))))
        self.ids, self.weights, self.after_comma = [], [], None


def cut(tokenizer: CLIPTokenizer, text: str) -> list[Chunk]:
    """Cut a text into chunks, at least one; each is start, at most 75 tokens, end, padding.

    BREAK ends a chunk. A full chunk ends after its last comma if that is among its last 20 tokens,
    else where it is full. Words of textual inversion are not split.
    Raises ArgumentError for a text that is too long, nested too deep or not valid Unicode.
    """
    cutter = Cutter(tokenizer)
    for index, spans in enumerate(weigh(text)):
        if index:
            cutter.close()
        for unit, weight in _units(tokenizer, spans):
            cutter.add(unit, weight)
    if cutter.ids or not cutter.chunks:
        cutter.close()
    return cutter.chunks


def _units(
    tokenizer: CLIPTokenizer, spans: Iterable[Span]
) -> Iterable[tuple[tuple[int, ...], float]]:
    for text, weight in spans:
        for unit in tokenizer.units(text):
            yield unit, weight
