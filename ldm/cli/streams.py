"""Standard input and output as files, written ``-``: a prompt, prompts, an image, a picture."""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
import warnings
from typing import TYPE_CHECKING

from ldm.errors import ArgumentError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

STREAM = "-"
MOST_BYTES = 256 << 20  # of standard input
OWN_INPUT = "LDM_OWN_INPUT"  # set for processes that each have standard input for themselves


def check_streams(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for standard input or output that cannot be used as the options ask."""
    readers = stdin_readers(arguments)
    if len(readers) > 1:
        raise ArgumentError(f"standard input can be read once, not for {' and '.join(readers)}")
    if readers and int(os.environ.get("WORLD_SIZE", 1)) > 1 and OWN_INPUT not in os.environ:
        raise ArgumentError(
            f"several processes cannot share standard input; save it, and give {readers[0]} a file"
        )
    if arguments.output == STREAM:
        check_stdout(arguments)


def stdin_readers(arguments: argparse.Namespace) -> list[str]:
    """Return what is read from standard input."""
    names = ("prompts", "image", "mask")
    controls = {
        "--control-image" if one == STREAM else "--control"
        for one in arguments.control_image or ()
        if one == STREAM or str(one).endswith(f":{STREAM}")
    }
    return [
        *["the prompt"] * arguments.prompt.count(STREAM),
        *(f"--{name}" for name in names if getattr(arguments, name) == STREAM),
        *sorted(controls),
    ]


def check_stdout(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError if a picture cannot go to standard output."""
    for name in ("save_steps", "animation", "explain", "json", "skip_existing"):
        if getattr(arguments, name):
            option = name.replace("_", "-")
            raise ArgumentError(f"--output - writes one picture to stdout; leave --{option} out")
    if arguments.processes > 1:
        raise ArgumentError("--output - is for one process; leave --processes out")
    if sys.stdout is None or sys.stdout.isatty():
        raise ArgumentError(
            "--output - writes a picture to stdout, which is a terminal; add > picture.png, or "
            "give --output a name"
        )


def read_stdin(use: str) -> bytes:
    """Return all of standard input.

    use: what for, in errors. Raises ArgumentError if it is a terminal, closed, empty or too long.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise ArgumentError(
            f"{use} is -, standard input, which is a terminal; pipe something into it, such as: "
            'echo "a red car" | ldm generate -'
        )
    content = _content()
    if len(content) > MOST_BYTES:
        raise ArgumentError(f"standard input is longer than {MOST_BYTES >> 20} MB; give a file")
    if not content.strip():
        raise ArgumentError(f"standard input is empty; {use} is read from it")
    return content


@functools.cache  # pictures of many jobs are the same
def _content() -> bytes:
    return sys.stdin.buffer.read(MOST_BYTES + 1)


def forget() -> None:
    """Forget what was read, before another run in the same process."""
    _content.cache_clear()
    _picture.cache_clear()


def read_prompt() -> str:
    """Return the text on standard input. Raises ArgumentError if it is not UTF-8."""
    content = read_stdin("the prompt")
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode().strip()
    except UnicodeDecodeError:
        raise ArgumentError(
            "standard input is not UTF-8 text; convert it, or give a file"
        ) from None


def picture_source(file: str) -> str | Image:
    """Return the name of an image's file, or for ``-`` the image on standard input.

    Raises ImageError if there is none.
    """
    return _picture() if file == STREAM else file


@functools.cache
def _picture() -> Image:
    from PIL import Image

    from ldm.images.files import open_content

    content = read_stdin("the image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = open_content(io.BytesIO(content))
            image.load()
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise ImageError(
            f"standard input is no picture that can be read ({error!s:.100}); give a PNG, JPEG "
            "or WebP"
        ) from None
    return image
