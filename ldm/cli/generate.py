"""``ldm generate``: draw pictures of a text."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ldm.checkpoints.model_folder import find_model
from ldm.cli import choices, ip_adapters, observe, streams
from ldm.cli.common import USAGE, importing_torch, run
from ldm.cli.configuration import Setting, listing, merged, read_settings, with_origin
from ldm.cli.controlnets import all_controls, move_scales, read_given_controls
from ldm.cli.fast import settle_fast
from ldm.cli.guidance_options import (
    given_depth,
    given_pictures,
    read_given,
    read_given_depth,
)
from ldm.cli.jobs import Job, plan_jobs, rank_and_world_size
from ldm.cli.options import check_arguments, parser, read
from ldm.cli.plots import read_plot
from ldm.cli.printed import notify, put_error_text
from ldm.cli.processes import check_processes, launch, share_threads
from ldm.cli.replay import given_options, with_file
from ldm.cli.rows import put_error
from ldm.cli.save_control import plan_control_files
from ldm.cli.session import Session, Work, complain, load_model
from ldm.cli.sharing import my_share
from ldm.cli.slips import NO_PROMPT, advice, check_prompt
from ldm.cli.style_options import given_reference, read_given_reference
from ldm.errors import ArgumentError
from ldm.memory.start import check_start
from ldm.writing import clear_leftovers


def generate(arguments: argparse.Namespace, argv: Sequence[str], has_prompt: bool) -> None:
    """Check the arguments, load the model, draw in batches, save each picture when it is done."""
    read_given.cache_clear()
    read_given_depth.cache_clear()
    read_given_controls.cache_clear()
    read_given_reference.cache_clear()
    ip_adapters.read_given_image_prompts.cache_clear()
    choices.forget()
    arguments.model = find_model(arguments.model, arguments.model_dir)
    check_prompt(arguments, has_prompt)
    streams.check_streams(arguments)
    uses_stdin = bool(streams.stdin_readers(arguments))
    texts = arguments.prompt
    arguments.prompt = [streams.read_prompt() if t == streams.STREAM else t for t in texts]
    choices.prepare_choices(arguments)
    move_scales(arguments)
    ip_adapters.move_scales(arguments)
    observe.check_single_pictures(arguments)
    check_processes(arguments)
    work = plan_work(arguments)
    rank, world = rank_and_world_size()
    if not arguments.prompts:
        # Before PyTorch is imported: a wrong file is an error at once.
        given_pictures(arguments)
        given_depth(arguments)
        all_controls(arguments)
        given_reference(arguments)
        ip_adapters.given_image_prompts(arguments)
    if rank == 0 and world == 1 and not arguments.quiet:
        for line in [*advice(arguments), *advice_on_words(arguments, work.jobs)]:
            warnings.warn(line, stacklevel=1)
    if arguments.dry_run:
        from ldm.cli.dry_run import dry_run

        dry_run(arguments, work)
        return
    if arguments.processes > 1 and world == 1:
        launch(arguments, argv, len(work.batches), uses_stdin)
        return
    session = Session(arguments, work)
    if rank == 0:
        for complaint in work.bad:
            complain(complaint, arguments.json)
    if work.jobs and not work.batches and not work.lacks_controls():
        for folder in {job.path.parent for job in work.jobs}:  # as one that draws does
            clear_leftovers(folder)
        session.inform("nothing is left to draw")
        return
    with importing_torch():
        import ldm.pipeline  # noqa: F401
    share_threads(arguments.threads)
    session.run(load_model(arguments))


def advice_on_words(arguments: argparse.Namespace, jobs: Sequence[Job]) -> list[str]:
    """Return a line about words that the built-in model never learnt; none for other models."""
    others = arguments.model, arguments.lora, arguments.embedding, arguments.text_encoder
    if any(others) or any(job.loras for job in jobs):
        return []
    from ldm.cli import vocabulary

    line = vocabulary.advice(list(dict.fromkeys(job.text for job in jobs)))
    return [line] if line else []


def plan_work(arguments: argparse.Namespace) -> Work:
    """Plan what to draw, in the order of drawing, without the share of other processes."""
    if plot := read_plot(arguments):  # which checks its cells
        jobs = [job for cell in plot.cells for job in plan_jobs(cell)[0]]
        batches: list[list[Job]] = [[job] for job in jobs]
        return Work(jobs, batches, [], plot, plan_control_files(arguments, jobs))
    check_arguments(arguments)
    jobs, bad = plan_jobs(arguments)
    controls = plan_control_files(arguments, jobs)
    return Work(jobs, my_share(jobs, arguments), bad, None, controls)


def main(argv: Sequence[str] | None = None, prog: str = "ldm-generate") -> int:
    """Entry point; returns the exit code. prog: what the user called it."""
    argv = sys.argv[1:] if argv is None else argv
    parser().prog = prog
    if not argv:
        put_error_text(NO_PROMPT.format(prog=prog))
        return USAGE
    try:
        arguments, given = read(argv), given_options(argv)
        with warnings.catch_warnings(record=True) as doubts:
            settings = read_settings()
        arguments = merged(arguments, given, settings)
    except ArgumentError as error:
        leave(str(error), "--json" in argv)
    for doubt in doubts if not arguments.quiet else ():
        notify(f"warning: {doubt.message}")
    streams.forget()

    def work() -> None:
        check_start()
        own = {name: setting.value for name, setting in settings.items()}
        whole = with_file(arguments, argv, own)
        before = given if given.get("fast") or whole.from_file else own | given
        with_origin(lambda: settle_fast(whole, before), settings)
        inform_of(whole, settings, given)
        with_origin(lambda: generate(whole, argv, "prompt" in given), settings)

    report = put_error if arguments.json else None
    return run(work, arguments.debug, arguments.quiet, report)


def inform_of(
    arguments: argparse.Namespace, settings: Mapping[str, Setting], given: Mapping[str, object]
) -> None:
    """Print which defaults of the user's are in use."""
    used = {
        name: setting
        for name, setting in settings.items()
        if getattr(arguments, name, None) == setting.value
    }
    line = listing(used, given)
    if line and not arguments.quiet and rank_and_world_size()[0] == 0:
        notify(line)


def leave(message: str, in_json: bool) -> NoReturn:
    """Exit with the code of wrong usage."""
    if in_json:
        run(lambda: put_error(message, USAGE), debug=False)
    parser().leave(message)


if __name__ == "__main__":
    sys.exit(main())
