"""``ldm-generate``: draw pictures of a text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli import observe
from ldm.cli.common import FAILED, fail, importing_torch, run
from ldm.cli.guidance_options import (
    given_depth,
    given_pictures,
    read_given,
    read_given_depth,
)
from ldm.cli.jobs import my_share, plan_jobs, rank_and_world_size
from ldm.cli.options import check_arguments
from ldm.cli.plots import read_plot
from ldm.cli.replay import parse, with_file
from ldm.cli.session import Session, Work, load_model


def generate(arguments: argparse.Namespace) -> None:
    """Check the arguments, load the model, draw in batches, save each picture when it is done."""
    read_given.cache_clear()
    read_given_depth.cache_clear()
    observe.check_single_pictures(arguments)
    work = plan_work(arguments)
    session = Session(arguments, work)
    if rank_and_world_size()[0] == 0:
        for complaint in work.bad:
            fail(complaint, FAILED)
    if not arguments.prompts:
        # Before PyTorch is imported: a wrong file is an error at once.
        given_pictures(arguments)
        given_depth(arguments)
    if work.jobs and not work.batches:
        session.inform("nothing is left to draw")
        return
    with importing_torch():
        import ldm.pipeline  # noqa: F401
    session.run(load_model(arguments))


def plan_work(arguments: argparse.Namespace) -> Work:
    """Plan what to draw, in the order of drawing, without the share of other processes."""
    if plot := read_plot(arguments):  # which checks its cells
        jobs = [job for cell in plot.cells for job in plan_jobs(cell)[0]]
        return Work(jobs, [[job] for job in jobs], [], plot)
    check_arguments(arguments)
    jobs, bad = plan_jobs(arguments)
    return Work(jobs, my_share(jobs, arguments), bad)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    return run(lambda: generate(with_file(arguments, argv)), arguments.debug, arguments.quiet)


if __name__ == "__main__":
    sys.exit(main())
