"""Names of the files that ``ldm generate`` writes: given, made from the prompt, or by a template.

-o "out/{prompt}-{seed}.png"
"""

from __future__ import annotations

import argparse
import os
import re
import string
import time
from collections.abc import Callable, Container, Mapping
from pathlib import Path, PurePath

from ldm.cli.streams import STREAM
from ldm.errors import ArgumentError, ImageError, did_you_mean

LONGEST_PART = 240  # bytes of a name, of which some are for the files beside a picture
DIGITS = re.compile(r"0?\d{1,2}d?")  # the format of a number in a template
OPTIONS = {  # fields of a template that stand for an option's value
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "sampler": "sampler",
    "schedule": "schedule",
    "width": "width",
    "height": "height",
    "strength": "strength",
}
Value = int | float | str | Callable[[int], str]  # a function of the greatest length in bytes
FIELDS = ("prompt", "seed", "number", "model", "date", "time", *OPTIONS)


def is_folder(output: str) -> bool:
    """Whether ``--output`` is a folder for the files, not the name of one."""
    # Unlike this, Path.is_dir raises OSError for a name that is too long.
    return output.endswith(("/", os.sep)) or os.path.isdir(output)  # noqa: PTH112


def is_template(output: str) -> bool:
    """Whether ``--output`` has fields."""
    return "{" in output or "}" in output


def is_made(output: str | None) -> bool:
    """Whether names are made here, so that another one may be taken if a file has it."""
    return output is None or is_template(output) or is_folder(output)


def make_folder(path: Path) -> None:
    """Make a folder unless it exists."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(
            f"the folder {path} cannot be made ({error.strerror}); choose another --output"
        ) from None


def file_name(
    arguments: argparse.Namespace,
    prompt: str,
    seed: int | str,
    number: int | None,
    place: int,
) -> Path:
    """Return ``--output``, numbered if there are several; else a name of the prompt and the seed.

    The latter is also used in a folder that ``--output`` names. number: in the file's name, if it
    has none of its own; place: of the picture among all. Raises ArgumentError for a wrong template.
    """
    from ldm.images.names import picture_name

    output: str | None = arguments.output
    if output == STREAM:
        return Path(STREAM)
    if output is not None and is_template(output):
        output = fill(output, fields_of(arguments, prompt, seed, place))
    elif output is not None and not is_folder(output):
        path = Path(output)
        return path if number is None else path.with_stem(f"{path.stem}-{number}")
    if output is not None and not is_folder(output):
        return Path(output)
    return Path(output or "", f"{picture_name(prompt, seed)}.png")


def fields_of(
    arguments: argparse.Namespace, prompt: str, seed: int | str, place: int
) -> dict[str, Value]:
    """Return the values of a template's fields; texts as functions of their greatest length.

    Options that are not given are left out.
    """
    from ldm.images.generation_info import model_name
    from ldm.images.names import slug

    model = model_name(arguments.model)
    values: dict[str, Value] = {
        "prompt": lambda most: slug(prompt, most),
        "model": lambda most: slug(model, most),
        "seed": seed,
        "number": place,
        "date": time.strftime("%Y-%m-%d"),
        "time": time.strftime("%H-%M-%S"),
    }
    for name, option in OPTIONS.items():
        value = getattr(arguments, option)
        if isinstance(value, str):
            values[name] = value.replace(" ", "-").replace("/", "-").replace(os.sep, "-")
        elif value is not None and (name != "strength" or arguments.image is not None):
            values[name] = int(value) if value == int(value) else value
    return values


def fill(template: str, values: Mapping[str, Value]) -> str:
    """Fill in the fields of a template.

    Raises ArgumentError for an unknown field, for one without a value, for a path that climbs out
    of its folder, and for a name that is too long.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        raise ArgumentError(
            f"--output is {template!r:.200}, which is no template; write {{{{ or }}}} for a brace"
        ) from None
    texts: list[Callable[[int], str]] = []
    for literal, name, spec, conversion in parts:
        texts.append(lambda most, literal=literal: literal)  # type: ignore[misc]
        if name is not None:
            texts.append(field_text(template, name, spec or "", conversion, values))
    for most in (100, 60, 30, 12):  # bytes
        filled = "".join(text(most) for text in texts)
        if all(len(os.fsencode(part)) <= LONGEST_PART for part in PurePath(filled).parts):
            break
    else:
        raise ArgumentError(
            f"--output {template!r:.200} makes a name that is too long: {filled:.80}…"
        )
    if ".." in PurePath(filled).parts:
        raise ArgumentError(
            f"--output {template!r:.200} climbs out of its folder by ..; give the folder's own path"
        )
    return filled


def field_text(
    template: str,
    name: str,
    spec: str,
    conversion: str | None,
    values: Mapping[str, Value],
) -> Callable[[int], str]:
    """Return a field's text, as a function of its greatest length in bytes."""
    if name not in FIELDS:
        hint = did_you_mean(name, FIELDS)
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise ArgumentError(
            f"--output {template!r:.200} has an unknown field {{{name}}}; {hint}{' ' * bool(hint)}"
            f"the fields are {known}; a brace is written {{{{"
        )
    if name not in values:
        option = OPTIONS[name].replace("_", "-")
        raise ArgumentError(
            f"--output {template!r:.200} has {{{name}}}, but --{option} is not given"
        )
    value = values[name]
    if callable(value) and not spec and not conversion:
        return value
    if conversion or (spec and not (isinstance(value, int) and DIGITS.fullmatch(spec))):
        raise ArgumentError(
            f"--output {template!r:.200}: {{{name}}} has a wrong format; a number may have one "
            "such as {number:04}, another field has none"
        )
    return lambda most: format(value, spec)


def free_name(path: Path, beside: Callable[[Path], list[Path]], taken: Container[Path]) -> Path:
    """Return a path, or the first one with a number that is neither ``taken`` nor a file's.

    beside: all files of a picture, by its path.
    """
    from ldm.images.names import free_names

    return next(
        found
        for found in free_names(path)
        if found not in taken and not any(map(os.path.lexists, beside(found)))
    )
