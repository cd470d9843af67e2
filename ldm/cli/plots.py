"""X/Y plots of ``ldm-generate``: one picture for each pair of values of two arguments.

--x "guidance_scale=2,4,8" --y "sampler=ddim,euler"
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm.cli.common import random_seed
from ldm.cli.fields import ALIASES, FIELDS, FILES, NEGATED, SWITCHES, recorded
from ldm.cli.options import MAX_PICTURES, check_arguments, parser
from ldm.config.arguments import about
from ldm.errors import ArgumentError

MOST_VALUES = 1000  # of an axis
ON_OFF = {"on": True, "off": False}
AXIS_NAMES = [name for name in FIELDS if name not in {*FILES, *recorded("never")}]  # of axes


@dataclass(frozen=True)
class Axis:
    """An argument and its values, in the order of the columns or rows."""

    name: str
    texts: tuple[str, ...]  # as they were typed
    values: tuple[Any, ...]

    @property
    def titles(self) -> list[str]:
        """Labels beside the pictures."""
        if self.name == "prompt":
            return list(self.texts)
        return [f"{self.name.replace('_', ' ')} {text}" for text in self.texts]


@dataclass(frozen=True)
class Plot:
    """The pictures of a plot, row by row, each as a command line of its own."""

    x: Axis | None
    y: Axis | None
    cells: list[argparse.Namespace]

    @property
    def columns(self) -> int:
        """Number of pictures side by side."""
        return len(self.x.values) if self.x else 1

    @property
    def metadata(self) -> dict[str, str]:
        """The axes, as the web UI's script of that name writes them."""
        from ldm.images.generation_info import PLOT

        texts = {"Script": PLOT}
        for letter, axis in (("X", self.x), ("Y", self.y)):
            if axis:
                texts[f"{letter} Type"] = about(FIELDS[axis.name]).axis or axis.name
                texts[f"{letter} Values"] = ", ".join(axis.texts)
        return texts


def read_plot(arguments: argparse.Namespace) -> Plot | None:
    """Read the plot of ``--x`` and ``--y``, and check all its values; None without them.

    Raises ArgumentError for an impossible axis.
    """
    if not (arguments.x or arguments.y):
        return None
    x, y = read_axis(arguments.x, "x"), read_axis(arguments.y, "y")
    check_axes(x, y, arguments)
    if arguments.seed == -1:  # one for all
        arguments.seed = random_seed()
    cells = []
    for row in _settings(y):
        for column in _settings(x):
            cell = argparse.Namespace(**vars(arguments) | row | column)
            check_arguments(cell)
            cells.append(cell)
    return Plot(x, y, cells)


def check_axes(x: Axis | None, y: Axis | None, arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for axes that do not go together, or not with other options."""
    axes = [axis for axis in (x, y) if axis]
    for name, given in (("num-images", arguments.num_images != 1), ("grid", arguments.grid)):
        if given:
            raise ArgumentError(f"--x and --y draw one picture for each pair; leave --{name} out")
    if x and y and x.name == y.name:
        raise ArgumentError(f"--x and --y both change {x.name}; each needs an argument of its own")
    if len(arguments.prompt) > 1 and "prompt" not in {axis.name for axis in axes}:
        raise ArgumentError(
            f"--x and --y take one prompt, not {len(arguments.prompt)}; "
            "several make an axis: --y 'prompt=…,…'"
        )
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_PICTURES:
        raise ArgumentError(f"these are {count} pictures; one command draws at most {MAX_PICTURES}")


def read_axis(text: str | None, option: str) -> Axis | None:
    """Read ``name=value,value``; a value with a comma in it is in double quotes."""
    if text is None:
        return None
    name, equals, rest = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    name = name if name in NEGATED else ALIASES.get(name, name)
    if not equals or name not in AXIS_NAMES:
        raise ArgumentError(
            f"--{option} is {text!r:.80}; expected NAME=VALUE,VALUE,… with one of the names "
            + ", ".join(AXIS_NAMES)
        )
    try:
        (texts,) = csv.reader([rest], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise ArgumentError(
            f"--{option} {text!r:.80}: the values are no list; write a value with a comma in it as "
            '"a, b", on one line'
        ) from None
    if not texts:
        raise ArgumentError(f"--{option} is {text!r}; give at least one value")
    if len(texts) > MOST_VALUES:
        raise ArgumentError(f"--{option} has {len(texts)} values; at most {MOST_VALUES} work")
    texts = [text.strip() for text in texts]
    return Axis(name, tuple(texts), tuple(_read(name, text, option) for text in texts))


def _read(name: str, text: str, option: str) -> object:
    """Read a value by the rules of its own option."""
    if name == "prompt":
        return [text]
    if name in SWITCHES:
        if text not in ON_OFF:
            raise ArgumentError(f"--{option}: {name} is {text!r}; expected on or off")
        return ON_OFF[text]
    try:
        found = parser().parse_args([f"--{name.replace('_', '-')}={text}"])
    except ArgumentError as error:
        raise ArgumentError(f"--{option}: {error}") from None
    return getattr(found, name)


def _settings(axis: Axis | None) -> Sequence[dict[str, Any]]:
    return [{axis.name: value} for value in axis.values] if axis else [{}]
