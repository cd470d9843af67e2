"""Choices and wildcards in prompts: ``--choices``, ``--wildcards`` and ``--all``.

Without one of these options, ``{``, ``|`` and ``__`` are text, as A1111's grammar has it.
"""

from __future__ import annotations

import argparse
import functools
import re
from random import Random

from ldm.cli.fields import filled
from ldm.errors import ArgumentError
from ldm.text.choices import Template
from ldm.text.wildcards import Wildcards, combinations

LOOKS_LIKE = re.compile(r"(?<!\\)\{[^{}|]*\||(?<![\w\\])__[^\W_][\w/*-]{0,99}?__(?!\w)")


def add_choices(group: argparse._ArgumentGroup) -> None:
    """Add the options for prompts with choices."""
    add = group.add_argument
    add(
        "--choices",
        action=argparse.BooleanOptionalAction,
        help="read {red|blue} in prompts as a choice, drawn anew for each picture by its seed "
        "(default: with --wildcards and --all)",
    )
    add(
        "--wildcards",
        type=filled,
        metavar="DIR",
        help="a folder of text files for prompts with choices: __animals__ is a line of "
        "animals.txt in it",
    )
    add("--all", action="store_true", help="draw all combinations of the choices in prompts")


def reads_choices(arguments: argparse.Namespace) -> bool:
    """Whether prompts have choices."""
    given: bool | None = arguments.choices
    return bool(arguments.wildcards or arguments.all) if given is None else given


def prepare_choices(arguments: argparse.Namespace) -> None:
    """Check the options, and put all combinations in the place of the prompts for ``--all``.

    Raises ArgumentError for options that do not go together and for templates that are wrong.
    """
    if arguments.all and arguments.choices is False:
        raise ArgumentError("--all draws all choices, and --no-choices none; leave one out")
    if not reads_choices(arguments):
        return
    arguments.templates = {}
    known = wildcards(arguments.wildcards)
    negative = arguments.negative_prompt or ""
    if LOOKS_LIKE.search(negative):
        raise ArgumentError(
            f"the negative prompt {negative[:60]!r} has choices, which are read in prompts only; "
            "write \\{ or \\__ for text"
        )
    if not arguments.all:
        for prompt in arguments.prompt:  # an error before PyTorch is imported
            parse(prompt, arguments.wildcards)
        return
    if arguments.x or arguments.y:
        raise ArgumentError(
            "--all draws a picture of each text, --x and --y one plot; leave either out"
        )
    every = {prompt: combinations(prompt, known) for prompt in dict.fromkeys(arguments.prompt)}
    arguments.templates = {text: prompt for prompt, texts in every.items() for text in texts}
    arguments.prompt = [text for prompt in arguments.prompt for text in every[prompt]]


def drawn_text(arguments: argparse.Namespace, prompt: str, seed: int) -> tuple[str, str | None]:
    """Return the text that a picture shows, and the template that it was drawn from, if any."""
    text, template = prompt, arguments.templates.get(prompt)
    if reads_choices(arguments) and not arguments.all:
        text, template = parse(prompt, arguments.wildcards).draw(Random(seed)), prompt
    return text, None if template == text else template


@functools.lru_cache(4)
def wildcards(folder: str | None) -> Wildcards:
    """Return the wildcards of a folder, or none. Raises ArgumentError if it cannot be read."""
    return Wildcards.of(folder)


@functools.lru_cache(64)
def parse(prompt: str, folder: str | None) -> Template:
    """Read a template. Raises ArgumentError for one that is wrong."""
    return wildcards(folder).parse(prompt)


def forget() -> None:
    """Forget the files of wildcards, which may have changed since the last command."""
    wildcards.cache_clear()
    parse.cache_clear()
