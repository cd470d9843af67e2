"""X/Y plots of ``ldm-generate``: one picture for each pair of values of two arguments.

--x "guidance_scale=2,4,8" --y "sampler=ddim,euler"
"""

from __future__ import annotations

import argparse
import csv
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm.cli.common import Checker
from ldm.cli.options import MAX_PICTURES, check, parser
from ldm.cli.replay import AROUND, LOADING, TOLD_OTHERWISE
from ldm.errors import ArgumentError

SHORT = {"steps": "num_inference_steps"}
SWITCH = {"on": True, "off": False}
# As the web UI calls them in a file.
TITLES = {
    "prompt": "Prompt S/R",
    "negative_prompt": "Negative prompt",
    "num_inference_steps": "Steps",
    "guidance_scale": "CFG Scale",
    "seed": "Seed",
    "sampler": "Sampler",
    "eta": "Eta",
    "clip_skip": "Clip skip",
    "strength": "Denoising",
}


@dataclass(frozen=True)
class Axis:
    """An argument and its values, in the order of the columns or rows."""

    name: str
    texts: tuple[str, ...]  # as they were typed
    values: tuple[Any, ...]

    @property
    def titles(self) -> list[str]:
        """What to write beside the pictures."""
        if self.name == "prompt":
            return list(self.texts)
        return [f"{self.name.replace('_', ' ')} {text}" for text in self.texts]


@dataclass(frozen=True)
class Plot:
    """The pictures of a plot, row by row: what is the same for all, and for each its own."""

    x: Axis | None
    y: Axis | None
    cells: list[argparse.Namespace]

    @property
    def columns(self) -> int:
        """Pictures side by side."""
        return len(self.x.values) if self.x else 1

    @property
    def metadata(self) -> dict[str, str]:
        """The axes, as the web UI's script of that name writes them."""
        from ldm.images.generation_info import PLOT

        told = {"Script": PLOT}
        for letter, axis in (("X", self.x), ("Y", self.y)):
            if axis:
                told[f"{letter} Type"] = TITLES.get(axis.name, axis.name)
                told[f"{letter} Values"] = ", ".join(axis.texts)
        return told


def read_plot(arguments: argparse.Namespace) -> Plot | None:
    """The plot that ``--x`` and ``--y`` ask for; None without. All values are checked.

    Raises ArgumentError for an axis that cannot be.
    """
    if not (arguments.x or arguments.y):
        return None
    for name, given in (("num-images", arguments.num_images != 1), ("grid", arguments.grid)):
        if given:
            raise ArgumentError(f"--x and --y draw one picture for each pair; leave --{name} out")
    x, y = (read_axis(text, option) for text, option in ((arguments.x, "x"), (arguments.y, "y")))
    if x and y and x.name == y.name:
        raise ArgumentError(f"--x and --y both change {x.name}; each needs an argument of its own")
    many = len(arguments.prompt) > 1 and "prompt" not in {axis.name for axis in (x, y) if axis}
    if many:
        raise ArgumentError(
            f"--x and --y take one prompt, not {len(arguments.prompt)}; "
            "several make an axis: --y 'prompt=…,…'"
        )
    count = len(x.values if x else "1") * len(y.values if y else "1")
    if count > MAX_PICTURES:
        raise ArgumentError(f"these are {count} pictures; one command draws at most {MAX_PICTURES}")
    if arguments.seed == -1:  # one for all
        arguments.seed = secrets.randbelow(2**32)
    cells = []
    for row in _settings(y):
        for column in _settings(x):
            cell = argparse.Namespace(**vars(arguments) | row | column)
            check(cell)
            cells.append(cell)
    return Plot(x, y, cells)


def read_axis(text: str | None, option: str) -> Axis | None:
    """``name=value,value``; a value with a comma in it stands in double quotes."""
    if text is None:
        return None
    name, equals, rest = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    name = SHORT.get(name, name)
    defaults = vars(parser().parse_args([]))
    able = [
        name
        for name in defaults
        if name not in AROUND | TOLD_OTHERWISE - {"prompt"} | {"replay", *LOADING}
    ]
    if not equals or name not in able:
        raise ArgumentError(
            f"--{option} is {text!r}; expected NAME=VALUE,VALUE,… with one of the names "
            + ", ".join(able)
        )
    try:
        (texts,) = csv.reader([rest], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise ArgumentError(
            f"--{option} {text!r}: the values are no list; write a value with a comma in it as "
            '"a, b", on one line'
        ) from None
    if not texts:
        raise ArgumentError(f"--{option} is {text!r}; give at least one value")
    texts, checker = [text.strip() for text in texts], parser(Checker)
    values = tuple(_read(name, text, defaults[name], option, checker) for text in texts)
    return Axis(name, tuple(texts), values)


def _read(name: str, text: str, default: object, option: str, checker: Checker) -> object:
    """A value by the rules of its own option."""
    if name == "prompt":
        return [text]
    if isinstance(default, bool):
        if text not in SWITCH:
            raise ArgumentError(f"--{option}: {name} is {text!r}; expected on or off")
        return SWITCH[text]
    try:
        told = checker.parse_args([f"--{name.replace('_', '-')}={text}"])
    except ValueError as error:
        raise ArgumentError(f"--{option}: {error}") from None
    return getattr(told, name)


def _settings(axis: Axis | None) -> Sequence[dict[str, Any]]:
    return [{axis.name: value} for value in axis.values] if axis else [{}]
