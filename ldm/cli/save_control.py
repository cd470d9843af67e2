"""``--save-control``: files that show what ControlNets see, at the size that is drawn."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.controlnets import given_controls
from ldm.cli.output_names import file_name, free_name, is_folder, is_made, make_folder
from ldm.cli.printed import put_name
from ldm.cli.prompts_file import Line
from ldm.cli.rows import with_context
from ldm.cli.streams import STREAM
from ldm.errors import ArgumentError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.cli.jobs import Job
    from ldm.pipeline import Pipeline

ControlFiles = dict[Line, list[Path]]  # of each control picture of a line


def keys(arguments: argparse.Namespace) -> list[tuple[object, ...]]:
    """Return what each control picture of a line depends on."""
    names = ("width", "height", "image", "mask", "outpaint", "hires_scale")
    size = [getattr(arguments, name) for name in names]
    return [(i, one, *size) for i, one in enumerate(arguments.control_image or ())]


def plan_control_files(arguments: argparse.Namespace, jobs: Sequence[Job]) -> ControlFiles:
    """Name the files of ``--save-control``: numbered if there are several.

    Raises ArgumentError if no picture steers, ImageError for a file that exists already or that
    could not be written.
    """
    from ldm.images import check_output

    if arguments.save_control is None:
        return {}
    if arguments.save_control == STREAM:
        raise ArgumentError("--save-control is -, but stdout is for pictures; give it a file")
    firsts: dict[tuple[object, ...], Job] = {}
    for job in jobs:
        for key in keys(job.line.arguments):
            firsts.setdefault(key, job)
    if not firsts:
        raise ArgumentError(
            "--save-control saves what a ControlNet sees; give --control or --control-image, too"
        )
    drawn = {job.path for job in jobs}
    naming = argparse.Namespace(**vars(arguments) | {"output": arguments.save_control})
    found: dict[tuple[object, ...], Path] = {}
    for place, (key, job) in enumerate(firsts.items(), 1):
        number = place if len(firsts) > 1 else None
        try:
            path = file_name(naming, job.text, job.seed, number, place)
        except ArgumentError as error:
            raise ArgumentError(str(error).replace("--output", "--save-control")) from None
        if is_folder(naming.output):
            path = path.with_stem(f"{path.stem}-control")
        taken = drawn | set(found.values())
        if is_made(naming.output):
            if not arguments.dry_run:
                make_folder(path.parent)
            kept = arguments.force or arguments.skip_existing
            path = free_name(path, (lambda path: []) if kept else (lambda path: [path]), taken)
        if path in taken:
            raise ArgumentError(f"--save-control is {path}, as another file is called; change it")
        if not arguments.dry_run or path.parent.exists():
            check_output(path, overwrite=True)
        if os.path.lexists(path) and not (arguments.force or arguments.skip_existing):
            raise ImageError(f"{path} exists; choose another --save-control, or add --force")
        found[key] = path
    return {job.line: [found[key] for key in keys(job.line.arguments)] for job in jobs}


def file_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the files of a line by their names in ``--json``."""
    several = len(paths) > 1
    return {f"control-{i}" if several else "control": path for i, path in enumerate(paths, 1)}


def save_control(picture: Image, path: Path, arguments: argparse.Namespace) -> Path:
    """Write one file, whole, and its name on stdout, unless it is there and is to stay.

    Returns its path: that with a number if the name was made here and is taken since.
    """
    from ldm.images import save_image
    from ldm.images.names import free_names

    for free in free_names(path):
        try:
            if arguments.skip_existing and os.path.lexists(free):
                return free
            save_image(picture, free, overwrite=arguments.force)
        except ImageError:
            numbered = arguments.skip_existing or is_made(arguments.save_control)
            if not os.path.lexists(free) or not numbered:
                raise
            if arguments.skip_existing:  # another process was quicker
                return free
        else:
            break
    if not arguments.json:
        with_context(free, lambda: put_name(free))
    return free


def seen(pipe: Pipeline, arguments: argparse.Namespace) -> list[Image]:
    """Return what the ControlNets see in the last pass: RGB, of the size that is drawn."""
    from PIL.Image import Image

    from ldm.hires import hires_size
    from ldm.images.files import stretch

    size = (arguments.height, arguments.width)
    if arguments.hires_scale is not None:
        size = hires_size(pipe, *size, arguments.hires_scale)
    return [
        stretch(hint, *size) if isinstance(hint, Image) else hint.picture(size)
        for hint in given_controls(arguments) or ()
    ]
