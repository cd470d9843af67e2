"""``ldm-generate``: draw pictures of a text."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from ldm import __version__
from ldm.cli.common import FAILED, fail, importing_torch, number, run, tell
from ldm.cli.jobs import Job, my_share, plan_jobs, processes
from ldm.cli.loras import LoraUse
from ldm.cli.options import check, parser
from ldm.cli.steer import hires_strength, masked, read_mask, steering, steering_metadata
from ldm.errors import LDMError
from ldm.samplers import SAMPLERS, SCHEDULES

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.pipeline import Pipeline

BAR = "{desc}{percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}<{remaining}, {rate_inv_fmt}]"
REFRESH = 10  # seconds between two lines of progress in a log file


def generate(arguments: argparse.Namespace) -> None:
    """Check what can be checked, load the model, draw in batches, save each picture when done."""
    began = time.monotonic()
    check(arguments)
    jobs, bad = plan_jobs(arguments)
    if processes()[0] == 0:
        for complaint in bad:
            fail(complaint, FAILED)
    todo = my_share(jobs, arguments)

    from ldm.images import image_grid, load_image  # before PyTorch: a wrong file is told at once

    image = None if arguments.image is None else load_image(arguments.image)
    image, mask = read_mask(image, arguments)
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
        variant=arguments.variant,
        vae=arguments.vae,
        prediction_type=arguments.prediction_type,
        ema=arguments.ema,
    )
    for embedding in arguments.embedding:
        say(f"{embedding}: use it as {pipe.load_textual_inversion(embedding)}")
    put_on(pipe, {use for job in jobs for use in job.loras}, say)
    loaded, steps = time.monotonic(), 0
    if image is not None:
        for own in dict.fromkeys(job.line for job in jobs):
            size = image_size(pipe, image, own.arguments)
            own.arguments.width, own.arguments.height = size
    pictures: list[Image] = []
    done = 0
    for batch, drawn, run_steps in draw_all(pipe, todo, (image, mask), arguments, say, bad):
        steps += run_steps
        done += len(batch)
        if arguments.grid:
            pictures += drawn
            continue
        for job, picture in zip(batch, drawn, strict=True):
            if arguments.skip_existing and os.path.lexists(job.path):
                continue  # of a batch in which another is missing
            text = parameters(pipe, job, picture.size, job.line.arguments)
            save(picture, job, text, arguments.force)
    if arguments.grid:
        rows_of_prompts = len(arguments.prompt) > 1 and arguments.num_images > 1
        grid = image_grid(pictures, columns=arguments.num_images if rows_of_prompts else None)
        text = parameters(pipe, jobs[0], pictures[0].size, arguments)
        save(grid, jobs[0], text, arguments.force)
    ended = time.monotonic()
    say(
        f"{done} picture{'s' * (done != 1)} in {ended - began:.1f} s: "
        f"{loaded - began:.1f} to load, {ended - loaded:.1f} to draw"
        f" ({(ended - loaded) / max(steps, 1):.2g} s/step)"
    )
    if bad:
        raise LDMError(f"{len(bad)} of the lines of {arguments.prompts} were not drawn")


def draw_all(
    pipe: Pipeline,
    todo: list[list[Job]],
    given: tuple[Image | None, Image | None],
    arguments: argparse.Namespace,
    say: Callable[[str], None],
    bad: list[str],
) -> Iterator[tuple[list[Job], list[Image], int]]:
    """Batches with their pictures and steps; a bad line of ``--prompts`` is told, and left out."""
    left = deque(todo)
    while left:
        batch = left.popleft()
        line = batch[0].line
        use_only(pipe, batch[0].loras)
        try:
            drawn, steps = draw(pipe, batch, given, line.arguments, say)
        except LDMError as error:
            if not line.number:
                raise
            lines = [list(jobs) for _, jobs in groupby(batch, key=lambda job: job.line)]
            if len(lines) > 1:  # which of them is it?
                left.extendleft(reversed(lines))
                continue
            bad.append(f"{arguments.prompts}:{line.number}: {error}")
            fail(bad[-1], FAILED)
        else:
            yield batch, drawn, steps


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


def image_size(pipe: Pipeline, image: Image, arguments: argparse.Namespace) -> tuple[int, int]:
    """(width, height) to draw: a side that is not given keeps the image's shape.

    With no side given, an image larger than what the model was trained for is drawn smaller, unless
    a part of it is to stay as it is.
    """
    width, height = arguments.width, arguments.height
    if width and height:
        return width, height
    if masked(arguments) and not (width or height):
        scale = 1.0
    elif width or height:
        scale = width / image.width if width else height / image.height
    else:
        own_height, own_width = pipe.default_size()
        scale = min(1.0, (own_width * own_height / (image.width * image.height)) ** 0.5)
    factor = pipe.vae.config.scale

    def fit(side: int) -> int:
        return max(factor, int(side * scale + 0.5) // factor * factor)

    return width or fit(image.width), height or fit(image.height)


def draw(
    pipe: Pipeline,
    batch: list[Job],
    given: tuple[Image | None, Image | None],
    arguments: argparse.Namespace,
    say: Callable[[str], None],
) -> tuple[list[Image], int]:
    """The pictures of a batch, with progress on stderr; and the number of steps run.

    given: the image to start from, and the mask of what is drawn anew.
    """
    from tqdm import tqdm

    from ldm.hires import hires_fix

    image, mask = given
    options = {
        "negative_prompt": arguments.negative_prompt,
        "num_inference_steps": arguments.num_inference_steps,
        "guidance_scale": arguments.guidance_scale,
        "seed": batch[0].seed,
        "variation_seed": batch[0].variation_seed,
        "sampler": arguments.sampler,
        "schedule": arguments.schedule,
        "eta": arguments.eta,
        "clip_skip": arguments.clip_skip,
        "width": arguments.width,
        "height": arguments.height,
        **steering(arguments),
    }
    texts = [job.text for job in batch]
    if arguments.hires_scale is not None:
        strength = hires_strength(arguments)
        stream = hires_fix(
            pipe, texts, hires_scale=arguments.hires_scale, hires_strength=strength, **options
        )
    else:
        strength = None if image is None else arguments.strength
        stream = pipe.stream(texts, image=image, mask_image=mask, strength=strength, **options)
    first, last = batch[0].seed, batch[-1].seed
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    levels, start = pipe.schedule(
        arguments.num_inference_steps,
        strength,
        arguments.sampler,
        arguments.schedule,
        masked=mask is not None,
    )
    steps, total = len(levels), len(levels) - start
    told = f"{steps} step{'s' * (steps > 1)}"
    if image is not None:
        width, height = arguments.width, arguments.height
        told = f"{width}x{height}, strength {arguments.strength:g}: {total} of {steps} steps"
    if arguments.hires_scale is not None:
        told += f", then {total} at {arguments.hires_scale:g} times the size"
        total += steps
    say(f"{seeds}, {told}")
    terminal = sys.stderr.isatty()
    with tqdm(
        total=total,
        unit="step",
        bar_format=BAR,
        leave=not terminal,
        mininterval=0.1 if terminal else REFRESH,
        delay=0 if terminal else REFRESH,
        disable=arguments.quiet,
    ) as bar:
        for progress in stream:
            bar.update(progress.step - bar.n)
    return progress.output.images, progress.steps


def parameters(
    pipe: Pipeline, job: Job, size: tuple[int, int], arguments: argparse.Namespace
) -> str:
    """How a picture was made, as A1111 writes it into the file."""
    from ldm.metadata import format_parameters

    choice = pipe.choose_sampler(arguments.sampler, arguments.schedule)
    defaults = pipe.defaults
    scale = arguments.guidance_scale
    return format_parameters(
        {
            "Prompt": job.prompt,
            "Negative prompt": arguments.negative_prompt,
            "Steps": arguments.num_inference_steps or defaults.num_inference_steps,
            "Sampler": SAMPLERS[choice.name].label,
            "Schedule type": SCHEDULES[choice.schedule].label,
            "CFG scale": number(defaults.guidance_scale if scale is None else scale),
            "Seed": job.seed,
            "Size": f"{size[0]}x{size[1]}",
            "Model": model_name(arguments.model),
            "VAE": model_name(arguments.vae) if arguments.vae else None,
            **steering_metadata(arguments, job.variation_seed),
            "Clip skip": arguments.clip_skip if arguments.clip_skip > 1 else None,
            "Eta": number(arguments.eta) if arguments.eta else None,
            "RNG": "CPU",
            "Version": f"ldm {__version__}",
        }
    )


def model_name(path: str | None) -> str:
    """What a model is called in metadata: a file's name without its ending, a folder's in full."""
    if path is None:
        return "ldm built-in"
    resolved = Path(path).expanduser().resolve()
    return resolved.stem if resolved.is_file() else resolved.name


def save(picture: Image, job: Job, text: str, overwrite: bool) -> None:
    """Write a picture, then its name on stdout: a line of the very bytes of the name."""
    from ldm.images import save_image

    save_image(picture, job.path, text, overwrite)
    if sys.stdout is None:  # closed by the caller
        return
    try:
        sys.stdout.buffer.write(os.fsencode(job.path) + b"\n")
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python tries again when it ends; that must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise LDMError(
            f"stopped after {job.path}: standard output cannot be written ({error.strerror})"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # Texts may stand between options, too; but argparse then does not know "--".
    arguments = (parser().parse_args if "--" in argv else parser().parse_intermixed_args)(argv)
    return run(lambda: generate(arguments), arguments.debug, arguments.quiet)


if __name__ == "__main__":
    sys.exit(main())
