"""Which process draws which pictures: by rank, by what is there already, and by claims."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ldm.cli.jobs import Job, check_new, files, group_jobs, rank_and_world_size
from ldm.cli.streams import STREAM
from ldm.errors import ArgumentError, ImageError
from ldm.writing import claim, wait_until_free


def my_share(jobs: list[Job], arguments: argparse.Namespace) -> list[list[Job]]:
    """Return the batches that this process draws, of those of ``accelerate launch``.

    They are whole batches, so that each picture is bit-identical to that of one process; with
    --skip-existing only those in which a file is missing.
    """
    rank, world = rank_and_world_size()
    if world > 1 and arguments.seed == -1:
        raise ArgumentError("several processes need one --seed to count from; give it")
    if world > 1 and arguments.grid:
        raise ArgumentError("--grid needs all pictures in one process; leave it out")
    mine = list(group_jobs(jobs, arguments.batch_size))[rank::world]
    if not arguments.skip_existing:
        for job in (job for batch in mine for job in batch if world > 1):
            check_new(job)
        return mine
    return [batch for batch in mine if not all(map(is_done, batch))]


def is_done(job: Job) -> bool:
    """Whether a picture and all files beside it exist."""
    return all(map(os.path.lexists, files(job)))


@contextlib.contextmanager
def claimed(jobs: Sequence[Job]) -> Iterator[bool]:
    """Claim the names of pictures for as long as they are drawn.

    Provides False if another process has claimed one, and --skip-existing leaves it to that.
    Needs no claim: a name that may get another number when it is saved, and one that --force
    overwrites. Raises ImageError for a name that is claimed or taken and may not be.
    """
    named = [job for job in jobs if job.base is None and job.path != Path(STREAM)]
    with contextlib.ExitStack() as stack:
        for job in named:
            own = job.line.arguments
            if own.force or stack.enter_context(claim(job.path)):
                check_new(job)
            elif own.skip_existing:
                yield False
                return
            else:
                raise ImageError(
                    f"{job.path} is drawn by another process; choose another --output, or share "
                    "the work: --skip-existing"
                )
        yield True


def wait_for(jobs: Sequence[Job]) -> None:
    """Wait until no other process draws these pictures."""
    for job in jobs:
        wait_until_free(job.path)
