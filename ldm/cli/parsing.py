"""Parsers of command lines: one-line errors that offer the nearest names."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ldm.cli.common import USAGE
from ldm.cli.printed import fail
from ldm.errors import ArgumentError, did_you_mean

LONGEST = 800  # letters of a message, which may quote what was given
UNKNOWN = "unrecognized arguments: "
CHOICE = re.compile(r"invalid choice: (['\"])(?P<value>.*)\1 \(choose from (?P<known>.*)\)$", re.S)


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong arguments on one line, without the usage of all of them.

    ``--cfg_scale`` is read as ``--cfg-scale``, but options are never abbreviated: else a new one
    could change what an old script means.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | settings)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse as argparse does, with names of options that are spelled with underscores."""
        argv = list(sys.argv[1:] if args is None else args)
        end = argv.index("--") if "--" in argv else len(argv)
        argv[:end] = map(self.spell, argv[:end])
        return super().parse_known_args(argv, namespace)

    def spell(self, text: str) -> str:
        """Spell the name of an option with dashes; return any other text as it is."""
        name, equals, value = text.partition("=")
        dashed = name.replace("_", "-")
        known = name.startswith("--") and dashed in self._option_string_actions
        return f"{dashed}{equals}{value}" if known else text

    def error(self, message: str) -> NoReturn:
        """Exit with the code of wrong usage."""
        self.leave(self.explained(message))

    def leave(self, message: str) -> NoReturn:
        """Exit with the code of wrong usage, and say where all arguments are explained."""
        joint = "" if message.endswith("?") else ";"
        sys.exit(fail(f"{message}{joint} {self.prog} --help explains the arguments", USAGE))

    def explained(self, message: str) -> str:
        """Add the nearest names to argparse's message."""
        if message.startswith(UNKNOWN):
            word = message.removeprefix(UNKNOWN).split("=")[0].split(" ")[0]
            known = {name: name for name in self._option_string_actions if name[:2] == "--"}
            hint = did_you_mean(word.replace("_", "-"), known, quote=str) if word[2:] else ""
            message += f"; {hint}" if hint else ""
        elif found := CHOICE.search(message):
            known_values = re.findall(r"[\w.-]+", found["known"])
            if hint := did_you_mean(found["value"], known_values):
                message += f"; {hint}"
        return message if len(message) <= LONGEST else f"{message[:LONGEST]}…"


class Checker(Parser):
    """A parser that raises ArgumentError instead of exiting: its values also come from files."""

    def error(self, message: str) -> NoReturn:
        """Raise ArgumentError."""
        raise ArgumentError(self.explained(message))
