r"""Choices and wildcards in prompts, in the syntax of sd-dynamic-prompts.

    {red|blue} car     red or blue              {2$$a|b|c}         two of them, a comma between
    {2::red|blue}      red twice as often       {1-2$$ and $$a|b}  one or two, joined by " and "
    __animals__        a line of animals.txt    {2$$__animals__}   two of its lines
    __nature/*__       of all these files       \{ \} \| \__       these characters

Choices nest, also in lines of files. ``[a|b]`` and ``(a:1.2)`` in them keep A1111's meaning. A
backslash stays in the text: A1111's grammar (``ldm.text.grammar``) drops it later.

The package dynamicprompts (0.31.0) is not used: of a prompt such as "100% red" or "a $5 note" it
raises a ParseException, of "number #1 car" it draws "number ", 40 nested braces and a wildcard
that contains itself end in a RecursionError, ``{x|[a|b]}`` is split inside the bracket, an unknown
wildcard is drawn as words, links out of the folder are followed, and after a pick from
``{2$$1::a|2::b|1::c}`` the weights can move to other options. Here parsing is linear, and depth,
length and combinations are bounded.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TypeAlias

from ldm.errors import ArgumentError, did_you_mean
from ldm.text.choices import MOST_COMBINATIONS, MOST_DEPTH, MOST_LENGTH, Choice, Level, Template
from ldm.text.wildcard_files import WildcardFolder

MOST_CHARACTERS = 50_000_000  # of all combinations
MOST_OPTIONS = 200_000  # of all wildcards in use
Source: TypeAlias = "Wildcards | Mapping[str, Sequence[str]] | str | Path | None"
# No two repeats in a row may take the same characters, so that matching takes linear time.
TOKEN = re.compile(
    r"(?P<text>\\.|<\s*(?:lora|lyco)\b[^<>{}]{0,1000}>)"
    r'|__(?P<name>[^\s_{}|\\\[\]()<>"][^{}|\\\[\]()<>"\n]{0,199}?)__'
    r"|(?P<refused>[$%]\{|\{[@!~])"
    r"|(?P<open>\{)(?:\s{0,9}(?P<pick>\d{0,9}(?:-\d{0,9})?)\s{0,9}\$\$"
    r"(?:(?P<separator>[^${}]*)\$\$)?)?"
    r"|(?P<sign>[|}\[\]])",
    re.DOTALL | re.IGNORECASE,
)


def expand(text: str, seed: int, wildcards: Source = None) -> str:
    """Draw one text of a template; the same seed always draws the same one.

    wildcards: a folder of text files (one option a line), or the options by name. Raises
    ArgumentError for what cannot be read, an unknown wildcard, or one that contains itself.
    """
    return Wildcards.of(wildcards).parse(text).draw(Random(seed))


def combinations(text: str, wildcards: Source = None) -> list[str]:
    """Return all different texts of a template; what stands first in it changes last.

    Weights have no effect, except that an option of weight 0 is left out. Raises ArgumentError as
    ``expand``, and for more than 100,000 combinations.
    """
    template = Wildcards.of(wildcards).parse(text)
    if template.count > MOST_COMBINATIONS or template.count * template.size > MOST_CHARACTERS:
        raise ArgumentError(
            f"the prompt {text[:60]!r} has more than {MOST_COMBINATIONS:,} combinations, or long "
            f"ones of more than {MOST_CHARACTERS:,} characters in all; use fewer choices, or draw "
            "some at random"
        )
    return list(dict.fromkeys(template.texts()))


class Wildcards:
    """Reads templates, and the options that their wildcards stand for, each when it is needed."""

    def __init__(self, options: Mapping[str, Sequence[str]]) -> None:
        self.options = options
        self.choices: dict[str, Choice] = {}  # those in use, by name or pattern
        self.open: list[str] = []  # wildcards that are being read, each in a line of the one before
        self.count = 0  # of the options in use

    @classmethod
    def of(cls, source: Source) -> Wildcards:
        """Return the wildcards of a folder or a mapping."""
        if isinstance(source, str | Path):
            return cls(WildcardFolder(source))
        return source if isinstance(source, Wildcards) else cls(source or {})

    def parse(self, text: str) -> Template:
        """Read a template. Raises ArgumentError for one that is wrong."""
        if len(text) > MOST_LENGTH:
            raise ArgumentError(
                f"a prompt has {len(text)} characters; at most {MOST_LENGTH} are read: shorten it"
            )
        root, end = Level(), 0
        levels = [root]
        for token in TOKEN.finditer(text):
            level = levels[-1]
            level.parts.append(text[end : token.start()])
            end = token.end()
            if token["name"] is not None:
                level.parts.append(self.choice(token["name"]))
            elif token["refused"]:
                raise self.error(
                    text,
                    f"{token[0]} of sd-dynamic-prompts is not supported; leave the "
                    "sign out, or write \\{ for text",
                )
            elif token["open"]:
                levels.append(Level(token["pick"], token["separator"]))
                if len(levels) > MOST_DEPTH + 1:
                    raise self.error(text, f"choices nest deeper than {MOST_DEPTH}; use fewer")
            elif level is root and token[0] == "}":
                raise self.error(text, "a } closes no choice; write \\} for text")
            elif level is root or not level.read(token[0]):
                level.parts.append(token[0])
            elif token[0] == "}":
                levels.pop()
                try:
                    levels[-1].parts.append(level.closed())
                except ArgumentError as error:
                    raise self.error(text, str(error)) from None
        if len(levels) > 1:
            raise self.error(text, "a { is never closed; close it, or write \\{ for text")
        return Template([part for part in [*root.parts, text[end:]] if part != ""])

    def error(self, text: str, message: str) -> ArgumentError:
        """Return an error in a template, or in a line of the wildcard that is being read."""
        where = f", a line of __{self.open[-1]}__" if self.open else ""
        return ArgumentError(f"{text[:60]!r}{where}: {message}")

    def choice(self, name: str) -> Choice:
        """Return the choice that a wildcard stands for. Raises ArgumentError if it is wrong."""
        if name in self.choices:
            return self.choices[name]
        chain = " in ".join(f"__{each}__" for each in [name, *reversed(self.open)])[:300]
        if name in self.open:
            raise ArgumentError(f"a wildcard contains itself: {chain}")
        if len(self.open) >= MOST_DEPTH:
            raise ArgumentError(f"wildcards nest deeper than {MOST_DEPTH}: {chain}")
        lines = [line for found in self.find(name) for line in self.options[found]]
        self.count += len(lines)
        if self.count > MOST_OPTIONS:
            raise ArgumentError(f"with {chain} there are more than {MOST_OPTIONS:,} options")
        level = Level()
        self.open.append(name)
        try:
            for line in lines:
                level.parts = [*self.parse(line).parts]
                level.end_option()
        except ArgumentError:
            self.count -= len(lines)
            raise
        finally:
            self.open.pop()
        if not level.options:
            raise ArgumentError(f"the wildcard {chain} has no options; write some, one a line")
        self.choices[name] = level.single()
        return self.choices[name]

    def find(self, name: str) -> list[str]:
        """Find the wildcards of a name, without its folder if need be, or of a pattern."""
        known = sorted(self.options)
        for pattern in (name, f"*/{name}"):
            found = [name] if pattern in self.options else fnmatch.filter(known, pattern)
            if found:
                return found
        near = did_you_mean(name, known) or "write \\__ for text"
        hint = near if known else "give a folder of wildcards, or write \\__ for text"
        raise ArgumentError(f"the wildcard __{name[:60]}__ is unknown; {hint}")
