"""ControlNets on the command line: ``--controlnet PATH[:SCALE]`` and ``--control-image FILE``."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.fields import DEFAULTS
from ldm.cli.loras import is_number
from ldm.cli.streams import picture_source
from ldm.errors import ArgumentError
from ldm.request import CONTROL

if TYPE_CHECKING:
    from PIL.Image import Image


def split_scale(text: str, option: str = "--controlnet") -> tuple[str, float | None]:
    """Read ``PATH`` or ``PATH:SCALE`` of an option.

    Raises ArgumentError for a scale that is no number.
    """
    if Path(text).exists():
        return text, None
    path, colon, last = text.rpartition(":")
    if not colon or "/" in last or "\\" in last:
        return text, None
    if is_number(last):
        return path, float(last)
    if Path(path).exists():
        raise ArgumentError(
            f"{option}: the scale of {path} is {last!r:.40}; it must be a number, such as 0.8"
        )
    return text, None


def has_scale(texts: list[str]) -> bool:
    """Whether one of the options has a scale behind its path."""
    return any(split_scale(text)[1] is not None for text in texts)


def move_scales(arguments: argparse.Namespace) -> None:
    """Move the scales of ``--controlnet PATH:SCALE`` to ``--control-scale``, which says the same.

    Raises ArgumentError for both.
    """
    if not has_scale(arguments.controlnet):
        return
    if arguments.controlnet_conditioning_scale is not None:
        raise ArgumentError("--controlnet PATH:SCALE and --control-scale say the same; give one")
    pairs = [split_scale(text) for text in arguments.controlnet]
    arguments.controlnet = [path for path, _ in pairs]
    scales = tuple(1.0 if scale is None else scale for _, scale in pairs)
    arguments.controlnet_conditioning_scale = scales if len(scales) > 1 else scales[0]


def check_control(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for options of ControlNets that do not go together."""
    count, pictures = len(arguments.controlnet), len(arguments.control_image or ())
    if not count:
        for name in CONTROL:
            if getattr(arguments, name) != DEFAULTS[name]:
                option = name.replace("_", "-")
                raise ArgumentError(f"--{option} is of a --controlnet; give that, too")
    elif pictures != count:
        raise ArgumentError(
            f"there {'is' if count == 1 else 'are'} {count} --controlnet and {pictures} "
            "--control-image; give one picture for each, in the same order"
        )


def given_controls(arguments: argparse.Namespace) -> list[Image] | None:
    """Load the pictures of ControlNets. Raises ImageError for a file that cannot be read."""
    files = arguments.control_image
    return None if not files else list(read_given_controls(tuple(files)))


@functools.lru_cache(maxsize=2)
def read_given_controls(files: tuple[str, ...]) -> tuple[Image, ...]:
    """Load as ``given_controls``. Clear the cache before a run: files may have changed."""
    from ldm.images import load_image

    return tuple(load_image(picture_source(file)) for file in files)
