"""``ldm-generate``: draw pictures of a text."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import seeing
from ldm.cli.again import parse, with_file
from ldm.cli.common import importing_torch, run, tell
from ldm.cli.grids import grid_columns, lay_out
from ldm.cli.loras import LoraUse, find_lora, lora_option, split_tags
from ldm.cli.options import check
from ldm.cli.plots import Plot, read_plot
from ldm.cli.recording import number, picture_texts
from ldm.cli.seeing import Watch, beside
from ldm.errors import ImageError, LDMError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.pipeline import Pipeline, Progress

NAME_BYTES = 100  # of the prompt in a file's name; file systems allow 255 in all
BAR = "{desc}{percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}<{remaining}, {rate_inv_fmt}]"
REFRESH = 10  # seconds between two lines of progress in a log file


@dataclass(frozen=True)
class Job:
    """One picture to draw."""

    prompt: str  # as it was typed, and a tag for every --lora
    seed: int
    path: Path
    text: str  # without the LoRAs that it names
    loras: tuple[LoraUse, ...] = ()


def generate(arguments: argparse.Namespace) -> None:
    """Check what can be checked, load the model, draw in batches, save each picture when done."""
    began = time.monotonic()
    seeing.check(arguments)
    plot = read_plot(arguments)  # which checks its cells
    if plot:
        work = [(cell, plan_jobs(cell)) for cell in plot.cells]
        jobs = [job for _, batch in work for job in batch]
    else:
        check(arguments)
        jobs = plan_jobs(arguments)
        work = [(arguments, batch) for batch in batches(jobs, arguments.batch_size)]

    from ldm.images import load_image  # before PyTorch: a wrong file is told at once

    image = None if arguments.image is None else load_image(arguments.image)
    say: Callable[[str], None] = (lambda line: None) if arguments.quiet else tell

    with importing_torch():
        from ldm.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        variant=arguments.variant,
        vae=arguments.vae,
        prediction_type=arguments.prediction_type,
        ema=arguments.ema,
    )
    for embedding in arguments.embedding:
        say(f"{embedding}: use it as {pipe.load_textual_inversion(embedding)}")
    put_on(pipe, {use for job in jobs for use in job.loras}, say)
    loaded, steps = time.monotonic(), 0
    for cell in [cell for cell, _ in work] if plot else [arguments]:
        if image is not None:
            cell.width, cell.height = image_size(pipe, image, cell)
    check_sizes(pipe, work, plot, jobs, image)
    pictures: list[Image] = []
    for cell, batch in work:
        use_only(pipe, batch[0].loras)
        drawn, watch = draw(pipe, batch, image, cell, say)
        steps += watch.steps
        if arguments.grid or plot:
            pictures += drawn
            continue
        for index, (job, picture) in enumerate(zip(batch, drawn, strict=True)):
            texts = picture_texts(pipe, job, picture, arguments, batch)
            save(picture, job.path, texts, arguments.force)
            paths = seeing.beside(job.path, arguments)
            for name, shown, options in watch.files(index + arguments.replay[1], job.text, picture):
                save(shown, paths[name], texts, arguments.force, **options)
    if arguments.grid or plot:
        whole, columns = lay_out(pictures, jobs, arguments, plot)
        shape = f"{columns}x{math.ceil(len(pictures) / columns)}"
        texts = picture_texts(pipe, jobs[0], pictures[0], work[0][0], grid=shape, plot=plot)
        save(whole, jobs[0].path, texts, arguments.force)
    ended = time.monotonic()
    say(
        f"{len(jobs)} picture{'s' * (len(jobs) > 1)} in {ended - began:.1f} s: "
        f"{loaded - began:.1f} to load, {ended - loaded:.1f} to draw"
        f" ({(ended - loaded) / max(steps, 1):.2g} s/step)"
    )


def plan_jobs(arguments: argparse.Namespace) -> list[Job]:
    """The pictures in the order of drawing; their seeds count up over all of them.

    Raises ImageError for a file that could not be written or is there already.
    """
    from ldm.images import check_output

    if arguments.output is not None:
        check_output(arguments.output, overwrite=True)
    prompts = [prompt for prompt in arguments.prompt for _ in range(arguments.num_images)]
    first = secrets.randbelow(2**32) if arguments.seed == -1 else arguments.seed
    numbered = len(prompts) > 1 and not arguments.grid
    always = [lora_option(text) for text in arguments.lora]
    tags_of_all = [f"<lora:{path.stem}:{number(scale)}>" for path, scale in always]
    jobs = []
    for i, prompt in enumerate(prompts):
        text, tags = split_tags(prompt)
        path = file_name(arguments.output, text, first + i, i + 1 if numbered else None)
        named = [(find_lora(name, arguments.lora_dir), scale) for name, scale in tags]
        jobs.append(Job(" ".join([prompt, *tags_of_all]), first + i, path, text, (*always, *named)))
    shown = jobs[:1] if arguments.grid else jobs
    for path in (p for job in shown for p in (job.path, *beside(job.path, arguments).values())):
        if not arguments.force and os.path.lexists(path):
            raise ImageError(f"{path} already exists; choose another --output, or add --force")
        check_output(path, overwrite=True)
    return jobs


def batches(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    """Up to ``size`` jobs in a row that use the same LoRAs."""
    for _, same in itertools.groupby(jobs, key=lambda job: job.loras):
        group = list(same)
        for start in range(0, len(group), size):
            yield group[start : start + size]


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


def file_name(output: str | None, prompt: str, seed: int, number: int | None) -> Path:
    """``--output``, with a number where there are several; else one of the prompt and the seed."""
    if output is not None:
        path = Path(output)
        return path if number is None else path.with_stem(f"{path.stem}-{number}")
    words = "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
    short = "-".join(words).encode()[:NAME_BYTES].decode(errors="ignore").strip("-")
    return Path(f"{short or 'picture'}-{seed}.png")


def image_size(pipe: Pipeline, image: Image, arguments: argparse.Namespace) -> tuple[int, int]:
    """(width, height) to draw: a side that is not given keeps the image's shape.

    With no side given, an image larger than what the model was trained for is drawn smaller.
    """
    width, height = arguments.width, arguments.height
    if width and height:
        return width, height
    if width or height:
        scale = width / image.width if width else height / image.height
    else:
        own_height, own_width = pipe.default_size()
        scale = min(1.0, (own_width * own_height / (image.width * image.height)) ** 0.5)
    factor = pipe.vae.config.scale

    def fit(side: int) -> int:
        return max(factor, int(side * scale + 0.5) // factor * factor)

    return width or fit(image.width), height or fit(image.height)


def check_sizes(
    pipe: Pipeline,
    work: list[tuple[argparse.Namespace, list[Job]]],
    plot: Plot | None,
    jobs: list[Job],
    image: Image | None,
) -> None:
    """Raise ArgumentError, before anything is drawn, for what some of it could not do."""
    from ldm.sheets import check_size, sheet_size

    height, width = pipe.default_size()
    for cell, batch in work:
        steps, first = run_levels(pipe, image, cell)
        size = (cell.width or width, cell.height or height)
        seeing.check_sizes(cell, *size, steps - first, [job.text for job in batch])
        if plot or cell.grid:
            columns = plot.columns if plot else grid_columns(cell, len(jobs))
            check_size(*sheet_size(len(jobs), columns, *size), "the sheet", jobs[0].path)
    for cell, batch in work if plot else ():
        open_stream(pipe, batch, image, cell)


def open_stream(
    pipe: Pipeline, batch: list[Job], image: Image | None, arguments: argparse.Namespace
) -> Iterator[Progress]:
    """The steps of a batch, which begin when the first is asked for."""
    size, index = arguments.replay  # of --from: 1 and 0 but for a picture that was one of a batch
    return pipe.stream(
        [job.text for job in batch for _ in range(size)],
        negative_prompt=arguments.negative_prompt,
        image=image,
        strength=arguments.strength,
        num_inference_steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale,
        seed=batch[0].seed - index,
        sampler=arguments.sampler,
        eta=arguments.eta,
        clip_skip=arguments.clip_skip,
        width=arguments.width,
        height=arguments.height,
    )


def run_levels(
    pipe: Pipeline, image: Image | None, arguments: argparse.Namespace
) -> tuple[int, int]:
    """How many steps a run has, and the first of them that is run."""
    levels, start = pipe.schedule(
        arguments.num_inference_steps,
        None if image is None else arguments.strength,
        arguments.sampler,
    )
    return len(levels), start


def draw(
    pipe: Pipeline,
    batch: list[Job],
    image: Image | None,
    arguments: argparse.Namespace,
    say: Callable[[str], None],
) -> tuple[list[Image], Watch]:
    """The pictures of a batch, with progress on stderr; and what was seen on the way."""
    from tqdm import tqdm

    stream = open_stream(pipe, batch, image, arguments)
    first, last = batch[0].seed, batch[-1].seed
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    steps, start = run_levels(pipe, image, arguments)
    total = steps - start
    told = f"{steps} step{'s' * (steps > 1)}"
    if image is not None:
        width, height = arguments.width, arguments.height
        told = f"{width}x{height}, strength {arguments.strength:g}: {total} of {steps} steps"
    say(f"{seeds}, {told}")
    terminal = sys.stderr.isatty()
    size, index = arguments.replay
    watching = seeing.watching(pipe, arguments, len(batch) * size)
    with (
        watching as watch,
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
    if sys.stdout is None:  # closed by the caller
        return
    try:
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python tries again when it ends; that must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise LDMError(
            f"stopped after {path}: standard output cannot be written ({error.strerror})"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    return run(lambda: generate(with_file(arguments, argv)), arguments.debug, arguments.quiet)


if __name__ == "__main__":
    sys.exit(main())
