"""Help in two lengths: ``--help`` shows everyday options, ``--help-all`` all of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from ldm.cli.common import run
from ldm.cli.printed import put_text

EVERYDAY = "everyday options"  # the heading of the options that the short help shows
USUAL = (EVERYDAY, "options")


class Full(argparse.RawDescriptionHelpFormatter):
    """Writes the names of an option once, then its value: ``-o, --output PATH``."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:  # it is laid out
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(self.shown(action))} {value}"

    def shown(self, action: argparse.Action) -> Iterable[str]:
        """Return the names of an option to show."""
        return action.option_strings


class Short(Full):
    """Writes everyday options only, each with its main names."""

    heading: str | None = None

    def start_section(self, heading: str | None) -> None:
        """Begin a group of options."""
        self.heading = heading
        super().start_section(heading)

    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        """Add the options of a group, if it is an everyday one."""
        super().add_arguments(actions if self.heading in USUAL else ())

    def shown(self, action: argparse.Action) -> Iterable[str]:
        """Return the short name and the first long one, or the shortest if it is much shorter."""
        long = [name for name in action.option_strings if name.startswith("--")]
        short = [name for name in action.option_strings if not name.startswith("--")]
        return [*short[:1], *(long[:1] if short or len(long) == 1 else [min(long, key=len)])]


class Help(argparse.Action):
    """The options ``--help`` and ``--help-all``, which print and exit."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"nargs": 0, "dest": argparse.SUPPRESS})

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        """Print to stdout; exit code 0."""
        parser.formatter_class = Full if str(rest[-1]).endswith("all") else Short
        text = parser.format_help()
        parser.exit(run(lambda: put_text(text), debug=False))


def add_help(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> None:
    """Add ``-h``, ``--help`` and ``--help-all`` to a parser that has no help of its own."""
    add = group.add_argument
    add("-h", "--help", action=Help, help="show the everyday options, and exit")
    add("--help-all", action=Help, help="show all options, and exit")
