"""``ldm-generate --prompts FILE``: a prompt a line, or JSON with arguments in every line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from ldm.cli.common import Parser
from ldm.cli.options import check, parser
from ldm.errors import ArgumentError, LDMError

# What a line may say; the rest is for the whole command. The other names are Python's.
KEYS = (
    "prompt negative_prompt seed num_images width height num_inference_steps guidance_scale "
    "sampler eta clip_skip strength output"
).split()
ALSO = {"steps": "num_inference_steps", "num_images_per_prompt": "num_images"}


@dataclass(frozen=True, eq=False)
class Line:
    """A line of the file; or, with the number 0, the command line itself."""

    number: int
    arguments: argparse.Namespace  # the command line's, where it does not say else
    said: frozenset[str] = frozenset()  # what it says itself
    error: LDMError | None = None


def read_prompts(path: str, arguments: argparse.Namespace) -> Iterator[Line]:
    """The lines of a file of prompts, also those that are wrong.

    A file is JSON lines if it is called .jsonl, or if its first line begins with "{". In plain
    text, lines that begin with "#" are comments. Raises LDMError if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            rows = file.read().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise LDMError(f"{path} cannot be read ({error.strerror}); give a text file") from None
    filled = [(number, row.strip()) for number, row in enumerate(rows, 1) if row.strip()]
    in_json = path.endswith(".jsonl") or bool(filled) and filled[0][1].startswith(b"{")
    rules = parser(_LineParser)
    for number, row in filled:
        if not in_json and row.startswith(b"#"):
            continue
        try:
            try:
                text = row.decode()
            except UnicodeDecodeError:
                raise ArgumentError("it is not UTF-8 text; save the file as UTF-8") from None
            said = _names(_object(text) if in_json else {"prompt": text})
            line = Line(number, _merge(said, arguments, rules), frozenset(said))
        except LDMError as error:
            line = Line(number, arguments, error=error)
        yield line


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"it is no JSON ({error}); expected {{…}}") from None
    except RecursionError:
        raise ArgumentError("it is nested too deep; expected {…}") from None
    if not isinstance(value, dict):
        raise ArgumentError(f'it is {text[:40]}; expected an object such as {{"prompt": "a cat"}}')
    return value


class _LineParser(Parser):
    """Checks a line's values by the rules for those of the command line."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(message.removeprefix("argument "))


def _names(said: dict[str, Any]) -> dict[str, Any]:
    """What a line says, by the names of the command line."""
    own: dict[str, Any] = {}
    for key, value in said.items():
        name = ALSO.get(key, key)
        if name not in KEYS:
            known = ", ".join(KEYS)
            raise ArgumentError(f"{key!r} is no argument of a line; these are: {known}")
        if name in own:
            raise ArgumentError(f"{key!r} is said twice")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ArgumentError(f"{key} is {json.dumps(value)}; expected a text or a number")
        if name in ("prompt", "output") and (not isinstance(value, str) or "\0" in value):
            raise ArgumentError(f"{key} is {json.dumps(value)}; expected a text")
        own[name] = value
    if "prompt" not in own:
        raise ArgumentError('it has no "prompt"')
    return own


def _merge(
    said: dict[str, Any], arguments: argparse.Namespace, rules: Parser
) -> argparse.Namespace:
    """The command line's arguments with those that a line says."""
    argv = [f"--{k.replace('_', '-')}={v}" for k, v in said.items() if k != "prompt"]
    # A namespace that has a value already keeps it where the line says nothing.
    before = argparse.Namespace(**vars(arguments) | {"prompt": [], "prompts": None})
    merged = rules.parse_args(argv, before)
    merged.prompt = [said["prompt"]]
    if "strength" not in said and arguments.image is None:
        merged.strength = None  # check() fills it in, and refuses it without an image
    check(merged)
    return merged
