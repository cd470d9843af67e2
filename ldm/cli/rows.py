"""What ``ldm generate`` prints on stdout: names of files, JSON lines, or one picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.printed import put, put_name
from ldm.cli.streams import STREAM
from ldm.errors import LDMError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.cli.jobs import Job

Texts = tuple[str, dict[str, Any]]  # in a picture's file: for A1111, and exact settings


def put_json(row: Mapping[str, Any]) -> None:
    """Print a line of JSON, in ASCII whatever is in it."""
    put(json.dumps(row).encode() + b"\n")


def put_error(message: str, code: int) -> None:
    """Print an error as JSON, with the exit code."""
    put_json({"error": message, "code": code})


def write_picture(
    picture: Image, path: Path, texts: Texts, overwrite: bool, named: bool = True, **options: Any
) -> None:
    """Write a picture, then its name on stdout: a line of exactly the bytes of the name.

    named: whether to print it. The path ``-`` is stdout itself.
    """
    from ldm.images import encode_image, save_image

    parameters, settings = texts
    if path == Path(STREAM):
        put(encode_image(picture, "PNG", parameters, settings, **options))
        return
    save_image(picture, path, parameters, overwrite, settings, **options)
    if named:
        with_context(path, lambda: put_name(path))


def with_context(path: Path, write: Callable[[], None]) -> None:
    """Print about a file. Raises LDMError, naming the file, if that fails."""
    try:
        write()
    except LDMError as error:
        raise LDMError(f"stopped after {path}: {error}") from None


def put_picture(
    job: Job, others: Mapping[str, Path], seconds: float, settings: Mapping[str, Any]
) -> None:
    """Print a picture as JSON. others: the files beside it; seconds: to draw it."""
    row = {
        "path": str(job.path),
        "seed": job.seed,
        "prompt": job.prompt,
        "seconds": round(seconds, 3),
        "settings": settings,
    }
    if job.variation_seed is not None:
        row["variation_seed"] = job.variation_seed
    if job.template is not None:
        row["template"] = job.template
    if others:
        row["files"] = {name: str(path) for name, path in others.items()}
    with_context(job.path, lambda: put_json(row))
