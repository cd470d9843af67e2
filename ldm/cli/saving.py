"""Saving a picture beside other processes: under a name of its own, never over another one."""

from __future__ import annotations

import argparse
import os
from collections.abc import Container
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.jobs import Job, all_files, files
from ldm.cli.output_names import free_name
from ldm.cli.rows import Texts, write_picture
from ldm.cli.sharing import is_done
from ldm.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image


def save_picture(
    job: Job, picture: Image, texts: Texts, arguments: argparse.Namespace, names: set[Path]
) -> Job:
    """Save a picture; return its job, with another name if its own was taken meanwhile.

    With --skip-existing, a file that is there stays. names: of all pictures of the command, to
    which another one is added. Raises ImageError if the file that stays holds another picture, to
    which the files that it lacks would not belong.
    """
    while not (arguments.skip_existing and os.path.lexists(job.path)):
        try:
            write_picture(picture, job.path, texts, arguments.force, not arguments.json)
            return job
        except ImageError:
            may_change = arguments.skip_existing or job.base is not None
            if not (may_change and os.path.lexists(job.path)):
                raise
        if job.base is not None:
            job = rename(job, names)
            names.add(job.path)
    if not is_done(job):
        check_same(job, picture, texts)
    return job


def save_beside(
    picture: Image, path: Path, texts: Texts, arguments: argparse.Namespace, **options: Any
) -> None:
    """Save a file beside a picture; with --skip-existing, one that is there stays."""
    if arguments.skip_existing and os.path.lexists(path):
        return
    try:
        write_picture(picture, path, texts, arguments.force, not arguments.json, **options)
    except ImageError:
        if not (arguments.skip_existing and os.path.lexists(path)):  # by a quicker process
            raise


def rename(job: Job, taken: Container[Path]) -> Job:
    """Return a job with the first number in its name that is free."""
    assert job.base is not None
    there = partial(all_files, arguments=job.line.arguments)
    return replace(job, path=free_name(job.base, there, taken))


def check_same(job: Job, picture: Image, texts: Texts) -> None:
    """Raise ImageError unless the file of a job holds this picture.

    It is drawn again for the files beside it that are missing, which must be its own.
    """
    from ldm.images.files import holds

    if holds(job.path, picture, *texts):
        return
    missing = ", ".join(path.name for path in files(job) if not os.path.lexists(path))
    raise ImageError(
        f"{job.path} is not the picture that is drawn now, of which {missing} is missing; move it "
        "away, choose another --output, or give --force in place of --skip-existing"
    )
