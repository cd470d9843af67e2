"""What a pickle says, without running it: its opcodes are read, and nothing is imported or called.

Opcodes: ``pickletools`` of Python's library. What a pickle names becomes a ``Global``, what it
would call a ``Call``; the tensors among them are recognised by ``pickle_content``. Each opcode
takes constant time, or time for the bytes that it reads, and their number is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from ldm.errors import LDMError

MOST_OPCODES = 2_000_000  # SD 1.x with the averaged copy and an optimiser's state has 300,000
LONGEST = 1_000_000  # bytes of a text or a number
# Numbers that are kept as keys. Others become None, as further ones could be chosen so that all of
# them take the same place in a dictionary, each of which is then searched for.
MOST_KEY = 1 << 32


class Damaged(ValueError):
    """A pickle that is no pickle, or too large."""


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names."""

    name: str


@dataclass
class Call:
    """What a pickle would make by a call."""

    function: object
    arguments: object
    state: object = None


Rebuild = Callable[[object, object], object]


class Machine:
    """A pickle's stack and memo. ``run`` reads the one that begins at ``position``."""

    def __init__(
        self, data: bytes | mmap, named: Callable[[str], None], rebuild: Rebuild, load: Rebuild
    ) -> None:
        """Read from bytes.

        named: called with each name of a class or function.
        rebuild: (function, arguments) → what a call makes.
        load: (storage's id, None) → what stands for it.
        """
        self.data, self.position, self.opcodes = data, 0, 0
        self.named, self.rebuild, self.load = named, rebuild, load
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> object:
        """Return what a pickle would make. Raises Damaged, and what the callables raise."""
        self.stack, self.marks, self.memo = [], [], {}
        try:
            while True:
                code = self.data[self.position]
                self.position += 1
                if code == STOP:
                    return self.stack.pop()
                self.opcodes += 1
                if self.opcodes > MOST_OPCODES:
                    raise Damaged(f"its pickle has more than {MOST_OPCODES:,} opcodes")
                OPCODES[code](self)
        except (Damaged, LDMError):
            raise
        except (LookupError, TypeError, AttributeError, ValueError, struct.error) as error:
            raise Damaged(
                f"its pickle is damaged at byte {self.position:,} ({type(error).__name__})"
            ) from None

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        end = self.position + count
        if not 0 <= count <= LONGEST or end > len(self.data):
            raise Damaged(f"its pickle claims {count:,} bytes at byte {self.position:,}")
        start, self.position = self.position, end
        return self.data[start:end]

    def number(self, form: str) -> Any:
        """Return a number of a form of ``struct``."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def line(self) -> str:
        """Return the text up to the end of the line."""
        end = self.data.find(b"\n", self.position, self.position + LONGEST)
        if end < 0:
            raise Damaged(f"its pickle has an endless line at byte {self.position:,}")
        text = self.data[self.position : end]
        self.position = end + 1
        return text.decode("utf-8", "replace")

    def text(self, form: str) -> None:
        """Push a text whose length is in a form of ``struct``."""
        self.stack.append(self.take(self.number(form)).decode("utf-8", "replace"))

    def skip(self, form: str) -> None:
        """Push nothing in the place of bytes, which no weight is in."""
        count = self.number(form)
        if not 0 <= count <= len(self.data) - self.position:
            raise Damaged(f"its pickle claims {count:,} bytes at byte {self.position:,}")
        self.position += count
        self.stack.append(None)

    def since_mark(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        mark = self.marks.pop()
        items, self.stack[mark:] = self.stack[mark:], []
        return items

    def last(self, count: int) -> None:
        """Make a tuple of the last values."""
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def fill(self, items: list[Any]) -> None:
        """Put keys and values, in turn, into the dictionary before them."""
        target = self.stack[-1]
        if isinstance(target, dict):  # and not a class's
            for key, value in zip(items[::2], items[1::2], strict=True):
                plain = isinstance(key, str) or (type(key) is int and 0 <= key < MOST_KEY)
                target[key if plain else None] = value

    def extend(self, items: list[Any]) -> None:
        """Put values into the list before them."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def name(self, module: object, name: object) -> None:
        """Push a class or function."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        full = f"{module}.{name}"
        full = full.replace("__builtin__.", "builtins.", 1)  # Python 2
        self.named(full)
        self.stack.append(Global(full))

    def call(self, function: object, arguments: object) -> None:
        """Push what a call would make."""
        self.stack.append(self.rebuild(function, arguments))

    def build(self) -> None:
        """Give what a call makes its state."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state

    def put(self, key: int) -> None:
        """Remember the last value."""
        self.memo[key] = self.stack[-1]

    def get(self, key: int) -> None:
        """Push a value that was remembered."""
        self.stack.append(self.memo[key])


def _push(make: Callable[[Machine], object]) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(make(m))


def _drop(read: Callable[[Machine], object]) -> Callable[[Machine], None]:
    def run(m: Machine) -> None:
        read(m)

    return run


def _call(m: Machine, *, keywords: bool = False) -> None:
    if keywords:
        m.stack.pop()
    arguments, function = m.stack.pop(), m.stack.pop()
    m.call(function, arguments)


def _object(m: Machine) -> None:
    function, *arguments = m.since_mark()
    m.call(function, tuple(arguments))


def _instance(m: Machine) -> None:
    m.name(m.line(), m.line())
    function = m.stack.pop()
    m.call(function, tuple(m.since_mark()))


def _name(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.name(module, name)


def _items(m: Machine) -> dict[Any, Any]:
    items = m.since_mark()
    m.stack.append({})
    m.fill(items)
    return m.stack.pop()


def _word(text: str) -> object:
    return {"00": False, "01": True}.get(text) if text in ("00", "01") else int(text)


def _append(m: Machine) -> None:
    value = m.stack.pop()
    m.extend([value])


def _set_item(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.fill([key, value])


STOP = ord(".")
OPCODES: dict[int, Callable[[Machine], None]] = {
    0x80: _drop(lambda m: m.take(1)),  # PROTO
    0x95: _drop(lambda m: m.take(8)),  # FRAME
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("0"): _drop(lambda m: m.stack.pop()),
    ord("1"): _drop(lambda m: m.since_mark()),
    ord("2"): _push(lambda m: m.stack[-1]),
    ord("N"): _push(lambda m: None),
    0x88: _push(lambda m: True),
    0x89: _push(lambda m: False),
    ord("J"): _push(lambda m: m.number("<i")),
    ord("K"): _push(lambda m: m.number("<B")),
    ord("M"): _push(lambda m: m.number("<H")),
    ord("G"): _push(lambda m: m.number(">d")),
    0x8A: _push(lambda m: int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    ord("I"): _push(lambda m: _word(m.line())),
    ord("L"): _push(lambda m: int(m.line().rstrip("L"))),
    ord("F"): _push(lambda m: float(m.line())),
    ord("X"): lambda m: m.text("<I"),
    ord("T"): lambda m: m.text("<I"),
    ord("U"): lambda m: m.text("<B"),
    0x8C: lambda m: m.text("<B"),
    0x8D: lambda m: m.text("<Q"),
    ord("V"): _push(lambda m: m.line()),
    ord("S"): _push(lambda m: m.line().strip("'\"")),
    ord("B"): lambda m: m.skip("<I"),
    ord("C"): lambda m: m.skip("<B"),
    0x8E: lambda m: m.skip("<Q"),
    0x96: lambda m: m.skip("<Q"),
    ord("]"): _push(lambda m: []),
    ord("l"): _push(lambda m: m.since_mark()),
    ord("a"): _append,
    ord("e"): lambda m: m.extend(m.since_mark()),
    ord(")"): _push(lambda m: ()),
    ord("t"): _push(lambda m: tuple(m.since_mark())),
    0x85: lambda m: m.last(1),
    0x86: lambda m: m.last(2),
    0x87: lambda m: m.last(3),
    ord("}"): _push(lambda m: {}),
    ord("d"): _push(_items),
    ord("s"): _set_item,
    ord("u"): lambda m: m.fill(m.since_mark()),
    0x8F: _push(lambda m: []),  # EMPTY_SET
    0x90: lambda m: m.extend(m.since_mark()),  # ADDITEMS
    0x91: _push(lambda m: m.since_mark()),  # FROZENSET
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _name,  # STACK_GLOBAL
    ord("R"): _call,
    0x81: _call,  # NEWOBJ
    0x92: lambda m: _call(m, keywords=True),  # NEWOBJ_EX
    ord("o"): _object,
    ord("i"): _instance,
    ord("b"): lambda m: m.build(),
    ord("Q"): _push(lambda m: m.load(m.stack.pop(), None)),
    ord("p"): lambda m: m.put(int(m.line())),
    ord("q"): lambda m: m.put(m.number("<B")),
    ord("r"): lambda m: m.put(m.number("<I")),
    0x94: lambda m: m.put(len(m.memo)),
    ord("g"): lambda m: m.get(int(m.line())),
    ord("h"): lambda m: m.get(m.number("<B")),
    ord("j"): lambda m: m.get(m.number("<I")),
}
