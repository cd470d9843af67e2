"""``ldm-generate``: draw pictures of a text."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import observe
from ldm.cli.common import FAILED, fail, importing_torch, put, run, tell
from ldm.cli.grids import grid_columns, lay_out
from ldm.cli.guidance_options import given_pictures, hires_strength, masked, read_given, steering
from ldm.cli.jobs import Job, batches, my_share, plan_jobs, processes
from ldm.cli.loras import LoraUse
from ldm.cli.metadata import picture_texts
from ldm.cli.observe import Watch
from ldm.cli.options import check, model_arguments
from ldm.cli.plots import Plot, read_plot
from ldm.cli.prompts_file import Line
from ldm.cli.replay import parse, with_file
from ldm.cli.sizes import image_size, size_advice
from ldm.errors import LDMError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.pipeline import Pipeline, Progress

BAR = "{desc}{percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}<{remaining}, {rate_inv_fmt}]"
REFRESH = 10  # seconds between two lines of progress in a log file


def generate(arguments: argparse.Namespace) -> None:
    """Check what can be checked, load the model, draw in batches, save each picture when done."""
    began = time.monotonic()
    read_given.cache_clear()
    observe.check(arguments)
    plot, bad = read_plot(arguments), []  # which checks its cells
    if plot:
        jobs = [job for cell in plot.cells for job in plan_jobs(cell)[0]]
        todo = [[job] for job in jobs]
    else:
        check(arguments)
        jobs, bad = plan_jobs(arguments)
        todo = my_share(jobs, arguments)
    if processes()[0] == 0:
        for complaint in bad:
            fail(complaint, FAILED)

    if not arguments.prompts:
        given_pictures(arguments)  # before PyTorch: a wrong file is told at once
    say: Callable[[str], None] = (lambda line: None) if arguments.quiet else tell

    if jobs and not todo:
        say("nothing is left to draw")
        return
    with importing_torch():
        from ldm.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        **model_arguments(arguments),
    )
    faster = pipe.device.type == "cpu" if arguments.optimize is None else arguments.optimize
    asked = {name: getattr(arguments, name) for name in ("compile", "offload", "int8")}
    if asked["int8"] is None:  # of --fast
        asked["int8"] = int8_gains(pipe)
    pipe.optimize(faster or any(asked.values()), **asked)
    for embedding in arguments.embedding:
        say(f"{embedding}: use it as {pipe.load_textual_inversion(embedding)}")
    put_on(pipe, {use for job in jobs for use in job.loras}, say)
    loaded, steps = time.monotonic(), 0
    for line in dict.fromkeys(job.line for job in jobs):
        own = line.arguments
        if own.image is not None:
            own.width, own.height = image_size(pipe, given_pictures(own)[0], own)
    todo = checked(pipe, todo, plot, arguments, bad)
    pictures: list[Image] = []
    done = 0
    for batch, drawn, watch in draw_all(pipe, todo, arguments, say, bad):
        steps += watch.steps
        done += len(batch)
        if arguments.grid or plot:
            pictures += drawn
            continue
        for index, (job, picture) in enumerate(zip(batch, drawn, strict=True)):
            if arguments.skip_existing and os.path.lexists(job.path):
                continue  # of a batch in which another is missing
            texts = picture_texts(pipe, job, picture, batch)
            save(picture, job.path, texts, arguments.force)
            paths = observe.beside(job.path, arguments)
            for name, shown, options in watch.files(index + arguments.replay[1], picture):
                save(shown, paths[name], texts, arguments.force, **options)
    if arguments.grid or plot:
        whole, columns = lay_out(pictures, jobs, arguments, plot)
        shape = f"{columns}x{math.ceil(len(pictures) / columns)}"
        texts = picture_texts(pipe, jobs[0], pictures[0], grid=shape, plot=plot)
        save(whole, jobs[0].path, texts, arguments.force)
    ended = time.monotonic()
    say(
        f"{done} picture{'s' * (done != 1)} in {ended - began:.1f} s: "
        f"{loaded - began:.1f} to load, {ended - loaded:.1f} to draw"
        f" ({(ended - loaded) / max(steps, 1):.2g} s/step)"
    )
    if bad:
        raise LDMError(f"{len(bad)} of the lines of {arguments.prompts} were not drawn")


def int8_gains(pipe: Pipeline) -> bool:
    """Whether 8 bits are the faster ones here."""
    from ldm.fast.int8 import gains

    return pipe.device.type == "cpu" and gains(next(pipe.unet.parameters()).dtype)


def draw_all(
    pipe: Pipeline,
    todo: list[list[Job]],
    arguments: argparse.Namespace,
    say: Callable[[str], None],
    bad: list[str],
) -> Iterator[tuple[list[Job], list[Image], Watch]]:
    """Batches with their pictures and what was seen; a bad line of ``--prompts`` is left out."""
    left = deque(todo)
    advise = cache(say)  # what is so of many batches is said once
    while left:
        batch = left.popleft()
        line = batch[0].line
        use_only(pipe, batch[0].loras)
        try:
            drawn, watch = draw(pipe, batch, line.arguments, say, advise)
        except LDMError as error:
            if not line.number:
                raise
            lines = [list(jobs) for _, jobs in groupby(batch, key=lambda job: job.line)]
            if len(lines) > 1:  # which of them is it?
                left.extendleft(reversed(lines))
                continue
            note(bad, line, error, arguments)
        else:
            yield batch, drawn, watch


def note(bad: list[str], line: Line, error: LDMError, arguments: argparse.Namespace) -> None:
    """Tell what is wrong with a line of ``--prompts``; the others go on."""
    bad.append(f"{arguments.prompts}:{line.number}: {error}")
    fail(bad[-1], FAILED)


def put_on(pipe: Pipeline, uses: set[LoraUse], say: Callable[[str], None]) -> None:
    """Load every LoRA that a job uses, once, under its path as its name."""
    for path in sorted({path for path, _ in uses}):
        say(pipe.load_lora_weights(path, adapter_name=str(path)).summary)


def use_only(pipe: Pipeline, loras: Sequence[LoraUse]) -> None:
    """The LoRAs of a batch, and no others; one that is named twice counts twice."""
    scales: dict[str, float] = {}
    for path, scale in loras:
        scales[str(path)] = scales.get(str(path), 0.0) + scale
    if pipe.loras.loaded:
        pipe.set_adapters(list(scales), list(scales.values()))


def checked(
    pipe: Pipeline,
    todo: list[list[Job]],
    plot: Plot | None,
    arguments: argparse.Namespace,
    bad: list[str],
) -> list[list[Job]]:
    """The batches without the lines of ``--prompts`` that could not be drawn.

    Raises ArgumentError, before anything is drawn, where that is said elsewhere.
    """
    count = sum(map(len, todo))
    good: list[list[Job]] = []
    for batch in todo:
        jobs: list[Job] = []
        for line, own in groupby(batch, key=lambda job: job.line):
            mine = list(own)
            try:
                check_sizes(pipe, mine, plot, count)
                jobs += mine
            except LDMError as error:
                if not line.number:
                    raise
                note(bad, line, error, arguments)
        good += batches(jobs, len(batch))
    return good


def check_sizes(pipe: Pipeline, jobs: list[Job], plot: Plot | None, count: int) -> None:
    """Raise ArgumentError for what some of a line's jobs could not do; ``count``: of all lines."""
    from ldm.hires import hires_size
    from ldm.images.sheets import check_size, sheet_size

    height, width = pipe.default_size()
    own = jobs[0].line.arguments
    steps, first = run_levels(pipe, own)
    size, run = (own.width or width, own.height or height), steps - first
    if own.hires_scale is not None:
        height, width = hires_size(pipe, own.height, own.width, own.hires_scale)
        size, run = (width, height), run + steps
    observe.check_sizes(own, *size, run, [job.text for job in jobs])
    if plot or own.grid:
        columns = plot.columns if plot else grid_columns(own, count)
        check_size(*sheet_size(count, columns, *size), "the sheet", jobs[0].path)
    if plot:
        open_stream(pipe, jobs, own)


def open_stream(
    pipe: Pipeline, batch: list[Job], arguments: argparse.Namespace
) -> Iterator[Progress]:
    """The steps of a batch, which begin when the first is asked for."""
    from ldm.hires import hires_fix

    image, mask = given_pictures(arguments)
    size, index = arguments.replay  # of --from: 1 and 0 but for a picture that was one of a batch
    seed, variation_seed = batch[0].seed, batch[0].variation_seed
    if variation_seed is None:
        seed -= index
    else:
        variation_seed -= index
    options = {
        "negative_prompt": arguments.negative_prompt,
        "num_inference_steps": arguments.num_inference_steps,
        "guidance_scale": arguments.guidance_scale,
        "seed": seed,
        "variation_seed": variation_seed,
        "sampler": arguments.sampler,
        "schedule": arguments.schedule,
        "eta": arguments.eta,
        "clip_skip": arguments.clip_skip,
        "width": arguments.width,
        "height": arguments.height,
        **steering(arguments),
    }
    texts = [job.text for job in batch for _ in range(size)]
    strength = strength_of(arguments)
    if arguments.hires_scale is not None:
        scale = arguments.hires_scale
        return hires_fix(pipe, texts, hires_scale=scale, hires_strength=strength, **options)
    return pipe.stream(texts, image=image, mask_image=mask, strength=strength, **options)


def strength_of(arguments: argparse.Namespace) -> float | None:
    """Of the pass that draws over a picture; None where there is none."""
    if arguments.hires_scale is not None:
        return hires_strength(arguments)
    return None if arguments.image is None else arguments.strength


def run_levels(pipe: Pipeline, arguments: argparse.Namespace) -> tuple[int, int]:
    """How many steps a run has, and the first of them that is run over a picture."""
    levels, start = pipe.schedule(
        arguments.num_inference_steps,
        strength_of(arguments),
        arguments.sampler,
        arguments.schedule,
        masked=masked(arguments),
    )
    return len(levels), start


def draw(
    pipe: Pipeline,
    batch: list[Job],
    arguments: argparse.Namespace,
    say: Callable[[str], None],
    advise: Callable[[str], None],
) -> tuple[list[Image], Watch]:
    """The pictures of a batch, with progress on stderr; and what was seen on the way."""
    from tqdm import tqdm

    stream = open_stream(pipe, batch, arguments)  # which refuses what cannot be drawn
    if advice := size_advice(pipe, arguments):
        advise(advice)
    first, last = batch[0].seed, batch[-1].seed
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    steps, start = run_levels(pipe, arguments)
    total = steps - start
    told = f"{steps} step{'s' * (steps > 1)}"
    if arguments.image is not None:
        width, height = arguments.width, arguments.height
        told = f"{width}x{height}, strength {arguments.strength:g}: {total} of {steps} steps"
    if arguments.hires_scale is not None:
        told += f", then {total} at {arguments.hires_scale:g} times the size"
        total += steps
    say(f"{seeds}, {told}")
    terminal = sys.stderr.isatty()
    size, index = arguments.replay
    with (
        observe.watching(pipe, arguments) as watch,
        tqdm(
            total=total,
            unit="step",
            bar_format=BAR,
            leave=not terminal,
            mininterval=0.1 if terminal else REFRESH,
            delay=0 if terminal else REFRESH,
            disable=arguments.quiet,
        ) as bar,
    ):
        for progress in stream:
            bar.update(progress.step - bar.n)
            watch(progress)
    drawn = progress.output.images
    return [drawn[index]] if size > 1 else drawn, watch


def save(
    picture: Image,
    path: Path,
    texts: tuple[str, dict[str, Any]],
    overwrite: bool,
    **options: Any,
) -> None:
    """Write a picture, then its name on stdout: a line of the very bytes of the name."""
    from ldm.images import save_image

    parameters, settings = texts
    save_image(picture, path, parameters, overwrite, settings, **options)
    try:
        put(os.fsencode(path) + b"\n")
    except LDMError as error:
        raise LDMError(f"stopped after {path}: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    return run(lambda: generate(with_file(arguments, argv)), arguments.debug, arguments.quiet)


if __name__ == "__main__":
    sys.exit(main())
