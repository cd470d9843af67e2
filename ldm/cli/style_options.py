"""Options that take the style of another picture: ``--reference-image``, ``--style-aligned``."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldm.cli.fields import DEFAULTS
from ldm.cli.streams import picture_source
from ldm.errors import ArgumentError
from ldm.request import REFERENCE

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.cli.jobs import Job


def check_style(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for options that do not go together."""
    if arguments.reference_image is None:
        for name in REFERENCE:
            if getattr(arguments, name) != DEFAULTS[name]:
                option = name.replace("_", "-")
                raise ArgumentError(f"--{option} is of a --reference-image; give that, too")
    elif arguments.style_aligned:
        raise ArgumentError(
            "--style-aligned and --reference-image both share self-attention; leave one out"
        )
    if arguments.style_aligned and (arguments.x or arguments.y):
        raise ArgumentError(
            "--x and --y draw each picture alone, and --style-aligned several at once; leave one "
            "out"
        )


def check_aligned(jobs: Sequence[Job], batch_size: int) -> None:
    """Raise ArgumentError for style-aligned pictures that one run cannot draw."""
    if not jobs or not jobs[0].line.arguments.style_aligned:
        return
    if len(jobs) > batch_size:
        raise ArgumentError(
            f"--style-aligned draws all pictures in one batch; for these {len(jobs)} give "
            f"--batch-size {len(jobs)}"
        )
    if any(job.loras != jobs[0].loras for job in jobs):
        raise ArgumentError(
            "--style-aligned draws all pictures in one batch, so that all prompts need the same "
            "<lora:…>"
        )


def given_reference(arguments: argparse.Namespace) -> Image | None:
    """Load the reference. Raises ImageError for a file that cannot be read."""
    file = arguments.reference_image
    return None if file is None else read_given_reference(file)


@functools.lru_cache(maxsize=2)
def read_given_reference(file: str) -> Image:
    """Load as ``given_reference``. Clear the cache before a run: files may have changed."""
    from ldm.images import load_image

    return load_image(picture_source(file))
