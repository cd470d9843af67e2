"""Likely slips on the command line of ``ldm generate``: no prompt, words without quotes, files."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ldm.cli.choices import LOOKS_LIKE, reads_choices
from ldm.config.json import read_json
from ldm.errors import ArgumentError

NO_PROMPT = (
    'usage: {prog} [options] PROMPT ...\n\n  {prog} "a red car"\n\n{prog} --help explains more'
)
# Words that are no picture of their own.
LINKS = frozenset(
    ["a", "an", "the", "of", "on", "in", "at", "with", "and", "under", "above", "beside", "behind"]
)
OPTION_OF = {  # endings of files → the option that reads them
    ".png": "--from or --image", ".jpg": "--from or --image", ".jpeg": "--from or --image",
    ".webp": "--from or --image", ".txt": "--prompts", ".jsonl": "--prompts",
    ".safetensors": "--model or --lora", ".ckpt": "--model", ".gguf": "--model",
}  # fmt: skip
NAME = re.compile(r"\S+\.\w+")


def check_prompt(arguments: argparse.Namespace, given: bool) -> None:
    """Raise ArgumentError if a model of texts is to draw without one.

    given: whether the command line has a prompt, which may be "".
    """
    elsewhere = (arguments.prompts, arguments.from_file, arguments.x, arguments.y)
    if given or any(elsewhere) or not reads_texts(arguments.model):
        return
    raise ArgumentError(
        'there is no prompt; give a text, such as "a red car", or "" to draw without one'
    )


def reads_texts(model: str | None) -> bool:
    """Whether a model draws texts, as far as its folder shows."""
    if model is None or not (Path(model).expanduser() / "model_index.json").is_file():
        return True
    index = read_json(Path(model).expanduser() / "model_index.json")
    return any(name.startswith("text_encoder") for name in index)


def advice(arguments: argparse.Namespace) -> list[str]:
    """Return what was probably meant, a line each; empty for an ordinary command line."""
    lines = []
    prompts = arguments.prompt
    single_words = len(prompts) > 1 and all(text and " " not in text for text in prompts)
    if single_words and LINKS.intersection(text.lower() for text in prompts):
        lines.append(
            f"these are {len(prompts)} pictures, one of each word; for one picture write "
            f'"{" ".join(prompts)}" in quotes'
        )
    for text in prompts:
        option = OPTION_OF.get(Path(text).suffix.lower()) if NAME.fullmatch(text) else None
        if option:
            lines.append(f"{text!r} is drawn as a text; to read the file give it with {option}")
    if not reads_choices(arguments) and not arguments.from_file:
        lines += [
            f"{text[:60]!r} is drawn as it stands; --choices reads it as choices"
            for text in prompts
            if LOOKS_LIKE.search(text)
        ][:1]
    scale = arguments.guidance_scale
    if arguments.negative_prompt and scale is not None and scale <= 1:
        lines.append(
            f"--negative-prompt has no effect: guidance is off at --guidance-scale {scale:g}"
        )
    return lines
