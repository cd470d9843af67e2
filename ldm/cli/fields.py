"""The fields of a request as options of ``ldm-generate``, keys of files of prompts and plot axes.

All of it is read from ``ldm.request``: a new argument needs no line here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import Field
from typing import Any

from ldm.cli import help
from ldm.config.arguments import SAME, about
from ldm.request import ALL_FIELDS


def filled(text: str) -> str:
    """Read an argument that must not be empty, as an unset shell variable makes it."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a value, or leave the option out")
    return text


def margins(text: str) -> tuple[int, ...]:
    """Read "64" or "64,0,64,0"."""
    values = [int(part) for part in text.split(",")]
    values = values * 4 if len(values) == 1 else values
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"it is {text!r}; give one number of pixels, or four")
    return tuple(values)


def interval(text: str) -> tuple[float, ...]:
    """Read "0.3,5"."""
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 2:
        raise argparse.ArgumentTypeError(f"it is {text!r}; give two levels, such as 0.3,5")
    return values


def numbers(text: str) -> float | tuple[float, ...]:
    """Read "0.5", or "0.5,1" of several things."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        hint = "give a number, or one for each: 0.5,1"
        raise argparse.ArgumentTypeError(f"it is {text!r:.40}; {hint}") from None
    return values if len(values) > 1 else values[0]


def modes(text: str) -> int | str | tuple[int | str, ...]:
    """Read "canny", "3", or "canny,6" of several pictures."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"it is {text!r:.40}; give a kind, or several: canny,tile")
    values = tuple(int(part) if part.isdecimal() else part for part in parts)
    return values if len(values) > 1 else values[0]


SWITCH, FILE = "bool", "Picture | Sequence[Picture]"
MAP = f"{FILE} | Tensor"
HINTS = "Pictures | Sequence[Pictures]"  # an option that may be repeated
MODES = "int | str | list[Any] | tuple[Any, ...]"
NUMBERS = "float | list[float] | tuple[float, ...]"
# A field's type, without None → how to read the option.
READERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "int | list[int] | tuple[int, ...]": int,
    "float": float,
    "str": str,
    "str | Sequence[str]": str,
    "str | Path": filled,
    "tuple[float, float]": interval,
    "tuple[int, int, int, int]": margins,
    FILE: filled,
    MAP: filled,
    HINTS: filled,
    NUMBERS: numbers,
    MODES: modes,
}
GROUPS = {  # a field's group, and those of other options → heading in the help
    "everyday": help.EVERYDAY,
    "text": "text",
    "image": "starting from an image",
    "control": "steering by a picture",
    "t2i_adapter": "steering by a picture, with a T2I-Adapter",
    "style": "the style of another picture",
    "ip_adapter": "a picture as a prompt",
    "size": "larger pictures",
    "sampling": "sampling",
    "guidance": "guidance",
    "noise": "variations of a seed",
    "model": "model",
    "many": "many pictures",
    "files": "files",
    "speed": "speed",
    "other": "options",
}
# What is wanted most, beside the prompt: the first in the help.
EVERYDAY = (
    *("seed", "num_images", "num_inference_steps", "height", "width", "guidance_scale"),
    *("negative_prompt", "sampler", "image", "strength"),
)


def kind(field: Field[Any]) -> str:
    """Return the type of a field, without None."""
    return str(field.type).removesuffix(" | None")


def option_name(field: Field[Any]) -> str:
    """Return a field's name on the command line, as Python writes it ("num_images")."""
    if field.default is True:  # the option switches it off
        return field.name
    options = about(field).options
    first = next((option for option in options if option.startswith("--")), options[0])
    return first.lstrip("-").replace("-", "_")


def default_of(field: Field[Any]) -> Any:
    """Return the option's default, which is the request's unless it has its own."""
    default = about(field).command_default
    return field.default if default is SAME else default


FIELDS = {option_name(field): field for field in ALL_FIELDS.values() if about(field).options}
DEFAULTS = {name: default_of(field) for name, field in FIELDS.items()}
SWITCHES = frozenset(name for name, field in FIELDS.items() if kind(field) == SWITCH)
FILES = tuple(name for name, field in FIELDS.items() if kind(field) in (FILE, MAP, HINTS))
REPEATED = frozenset(name for name, field in FIELDS.items() if kind(field) == HINTS)
LISTS = frozenset(name for name, field in FIELDS.items() if "tuple[" in kind(field)) - {"seed"}
# Other accepted names → the option's.
ALIASES = {
    alias: name
    for name, field in FIELDS.items()
    for alias in (field.name, *(o[2:].replace("-", "_") for o in about(field).options if o[2:]))
    if alias != name
}
NEGATED = frozenset(name for name in ALIASES if name.startswith("no_"))


def recorded(when: str) -> frozenset[str]:
    """Return the options that a picture's settings record like this; see ``Argument``."""
    return frozenset(name for name, field in FIELDS.items() if about(field).recorded == when)


class NegativePrompt(argparse.Action):
    """The option ``--negative-prompt``; ``-n 4`` is refused: it means a number elsewhere."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the text."""
        if option_string == "-n" and values.isdecimal():
            parser.error(
                f"-n is the negative prompt, not a number; for {values} pictures give "
                f"--num-images {values}, to steer away from {values!r} --negative-prompt {values}"
            )
        setattr(namespace, self.dest, values)


def add_field(group: argparse._ArgumentGroup, name: str) -> None:
    """Add the option for a field."""
    field = FIELDS[name]
    names, default = about(field), default_of(field)
    text = names.help.format(default=field.default if default is None else default)
    add = group.add_argument
    if name == "prompt":  # several, also between options
        add(name, nargs="*", help=text, metavar="PROMPT")
    elif kind(field) == SWITCH:
        action = "store_false" if field.default is True else "store_true"
        add(*names.options, dest=name, action=action, help=text)
    else:
        reader, metavar = READERS[kind(field)], names.metavar
        store: Any = NegativePrompt if name == "negative_prompt" else "store"
        store = "append" if name in REPEATED else store
        add(
            *names.options,
            dest=name,
            action=store,
            type=reader,
            default=default,
            metavar=metavar,
            help=text,
        )


def request_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the request's fields that options set; None leaves the request's own default.

    The texts, the number of pictures of each and the files are not among them.
    """
    others = recorded("never") | recorded("another") | {"outpaint"}
    given = {name: getattr(arguments, name) for name in FIELDS if name not in others}
    if arguments.image is None:
        del given["strength"]
    given = {name: value for name, value in given.items() if value is not None}
    return {FIELDS[name].name: from_option(name, value) for name, value in given.items()}


def from_option(name: str, value: Any) -> Any:
    """Return the request's value for an option's: where it counts otherwise, the number."""
    offset = about(FIELDS[name]).command_offset if name in FIELDS else 0
    return value - offset if offset else value


def to_option(name: str, value: Any) -> Any:
    """Return the option's value for a request's: the reverse of ``from_option``."""
    offset = about(FIELDS[name]).command_offset if name in FIELDS else 0
    return value + offset if offset and isinstance(value, int | float) else value
