"""``ldm --print-completion bash``: a script that completes commands, options and their values.

It is written by shtab, an optional extra, so that completing costs the commands no time to start.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from ldm.cli.common import USAGE
from ldm.cli.main import COMMANDS
from ldm.cli.printed import fail, put
from ldm.samplers import SAMPLERS, SCHEDULES

SHELLS = ("bash", "zsh", "tcsh")
FILES = ("FILE", "FILE[:SCALE]", "PATH", "PICTURE", "MODEL", "OUTPUT", "NAME|FILE")


def print_completion(argv: Sequence[str]) -> int:
    """Print the script for a shell; returns the exit code."""
    if len(argv) != 1 or argv[0] not in SHELLS:
        return fail(f"--print-completion needs one of {', '.join(SHELLS)}", USAGE)
    try:
        import shtab
    except ImportError:
        return fail('--print-completion needs shtab: pip install "ldm[completion]"', USAGE)
    put(f"{shtab.complete(whole_parser(), argv[0])}\n".encode())
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """Build one parser of all commands, for shtab."""
    import shtab

    parser = argparse.ArgumentParser(prog="ldm")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, text in COMMANDS.items():
        build = import_module(f"ldm.cli.{name}").parser
        own = getattr(build, "__wrapped__", build)()  # a new one, as it is changed below
        added = commands.add_parser(name, help=text, parents=[own], add_help=False)
        for action in added._actions:
            if action.dest in ("sampler", "schedule"):
                action.choices = list(SAMPLERS if action.dest == "sampler" else SCHEDULES)
            elif action.metavar in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return parser
