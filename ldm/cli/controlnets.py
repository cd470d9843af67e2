"""ControlNets and T2I-Adapters on the command line, each with its picture.

``--controlnet PATH[:SCALE] --control-image FILE``, ``--t2i-adapter PATH[:SCALE] --adapter-image
FILE``: ``kind`` says which options are meant.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.fields import DEFAULTS
from ldm.cli.loras import is_number
from ldm.cli.streams import picture_source
from ldm.config.picture_readers import CONTROLNET, T2I_ADAPTER, PictureReader
from ldm.errors import ArgumentError
from ldm.request import arguments_of

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = (CONTROLNET, T2I_ADAPTER)


def split_scale(text: str, kind: PictureReader = CONTROLNET) -> tuple[str, float | None]:
    """Read ``PATH`` or ``PATH:SCALE``. Raises ArgumentError for a scale that is no number."""
    if Path(text).exists():
        return text, None
    path, colon, last = text.rpartition(":")
    if not colon or "/" in last or "\\" in last:
        return text, None
    if is_number(last):
        return path, float(last)
    if Path(path).exists():
        raise ArgumentError(
            f"{kind.flag}: the scale of {path} is {last!r:.40}; it must be a number, such as 0.8"
        )
    return text, None


def has_scale(texts: list[str], kind: PictureReader) -> bool:
    """Whether one of the options has a scale behind its path."""
    return any(split_scale(text, kind)[1] is not None for text in texts)


def move_scales(arguments: argparse.Namespace) -> None:
    """Move the scales of ``PATH:SCALE`` to the options for scales, which say the same.

    Raises ArgumentError for both.
    """
    for kind in KINDS:
        texts = getattr(arguments, kind.option)
        if not has_scale(texts, kind):
            continue
        if getattr(arguments, kind.scale) is not None:
            raise ArgumentError(
                f"{kind.flag} PATH:SCALE and {kind.scale_flag} say the same; give one"
            )
        pairs = [split_scale(text, kind) for text in texts]
        setattr(arguments, kind.option, [path for path, _ in pairs])
        scales = tuple(1.0 if scale is None else scale for _, scale in pairs)
        setattr(arguments, kind.scale, scales if len(scales) > 1 else scales[0])


def check_control(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for options of a kind that do not go together."""
    for kind in KINDS:
        count = len(getattr(arguments, kind.option))
        pictures = len(getattr(arguments, kind.image) or ())
        if not count:
            for name in arguments_of(kind):
                if getattr(arguments, name) != DEFAULTS[name]:
                    option = name.replace("_", "-")
                    raise ArgumentError(f"--{option} is of a {kind.flag}; give that, too")
        elif pictures != count:
            raise ArgumentError(
                f"there {'is' if count == 1 else 'are'} {count} {kind.flag} and {pictures} "
                f"{kind.image_flag}; give one picture for each, in the same order"
            )


def given_controls(
    arguments: argparse.Namespace, kind: PictureReader = CONTROLNET
) -> list[Image] | None:
    """Load the pictures of a kind. Raises ImageError for a file that cannot be read."""
    files = getattr(arguments, kind.image)
    return None if not files else list(read_given_controls(tuple(files)))


def all_controls(arguments: argparse.Namespace) -> dict[str, list[Image] | None]:
    """Load the pictures of every kind, by the request's arguments."""
    return {kind.image: given_controls(arguments, kind) for kind in KINDS}


@functools.lru_cache(maxsize=2 * len(KINDS))
def read_given_controls(files: tuple[str, ...]) -> tuple[Image, ...]:
    """Load as ``given_controls``. Clear the cache before a run: files may have changed."""
    from ldm.images import load_image

    return tuple(load_image(picture_source(file)) for file in files)
