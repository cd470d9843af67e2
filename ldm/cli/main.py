"""``ldm``: one command, with the others as its subcommands. ``python -m ldm`` is the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from ldm import __version__

COMMANDS = {
    "generate": "draw pictures of a text",
    "info": "what a picture, a model or the built-in model is",
    "upscale": "enlarge pictures by a model or a filter",
    "convert": "write a model in another layout or number format",
    "train": "train a part of a model",
    "serve": "open a page that draws, and answer HTTP clients",
}
HELP = """\
usage: ldm COMMAND ...

Text-conditioned latent diffusion, with a small built-in model.

commands:
{commands}

examples:
  ldm generate "a red car"
  ldm info a-red-car-7.png
  ldm generate --help

options:
  -h, --help                show this, and exit
  --version                 print the version, and exit
  --print-completion SHELL  print a script that completes ldm in bash, zsh or tcsh, and exit
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. A command's module is imported when it is called."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or [""]
    if name in COMMANDS:
        return int(import_module(f"ldm.cli.{name}").main(rest, prog=f"ldm {name}"))
    if name in ("-h", "--help", "--help-all", "help"):
        return show(help_text())
    if name == "--version":
        return show(f"ldm {__version__}\n")
    if name.partition("=")[0] == "--print-completion":
        from ldm.cli.completion import print_completion

        return print_completion([*name.split("=", 1)[1:], *rest])
    from ldm.cli.common import USAGE
    from ldm.cli.printed import fail, put_error_text

    if not name:
        put_error_text(help_text().rstrip())
        return USAGE
    return fail(unknown(name), USAGE)


def show(text: str) -> int:
    """Print to stdout; returns the exit code."""
    from ldm.cli.common import run
    from ldm.cli.printed import put_text

    return run(lambda: put_text(text), debug=False)


def help_text() -> str:
    """Return the help."""
    rows = (f"  {name:9} {about}" for name, about in COMMANDS.items())
    return HELP.format(commands="\n".join(rows))


def unknown(name: str) -> str:
    """Return what is wrong with a word that is no command, and what was probably meant."""
    from ldm.errors import did_you_mean

    if hint := did_you_mean(name, list(COMMANDS)):
        return f"{name!r} is no command; {hint}"
    if name.startswith("-"):
        return f"{name} is no option of ldm; to draw a picture: ldm generate {name} …"
    return (
        f"{name!r:.60} is no command ({', '.join(COMMANDS)}); to draw a picture of it: "
        f'ldm generate "{name:.60}"'
    )


if __name__ == "__main__":
    sys.exit(main())
