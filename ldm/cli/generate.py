"""``ldm-generate``: draw pictures of a text."""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm import __version__
from ldm.cli.common import importing_torch, run, tell
from ldm.cli.loras import LoraUse, find_lora, lora_option, split_tags
from ldm.cli.options import check, model_arguments, parser
from ldm.errors import ImageError, LDMError
from ldm.samplers import SAMPLERS, schedule_type

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.pipeline import Pipeline

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
    check(arguments)
    jobs = plan_jobs(arguments)

    from ldm.images import image_grid, load_image  # before PyTorch: a wrong file is told at once

    image = None if arguments.image is None else load_image(arguments.image)
    say: Callable[[str], None] = (lambda line: None) if arguments.quiet else tell

    with importing_torch():
        from ldm.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        **model_arguments(arguments),
    )
    for embedding in arguments.embedding:
        say(f"{embedding}: use it as {pipe.load_textual_inversion(embedding)}")
    put_on(pipe, {use for job in jobs for use in job.loras}, say)
    loaded, steps = time.monotonic(), 0
    if image is not None:
        arguments.width, arguments.height = image_size(pipe, image, arguments)
    pictures: list[Image] = []
    for batch in batches(jobs, arguments.batch_size):
        use_only(pipe, batch[0].loras)
        drawn, run_steps = draw(pipe, batch, image, arguments, say)
        steps += run_steps
        if arguments.grid:
            pictures += drawn
            continue
        for job, picture in zip(batch, drawn, strict=True):
            save(picture, job, parameters(pipe, job, picture.size, arguments), arguments.force)
    if arguments.grid:
        rows_of_prompts = len(arguments.prompt) > 1 and arguments.num_images > 1
        grid = image_grid(pictures, columns=arguments.num_images if rows_of_prompts else None)
        text = parameters(pipe, jobs[0], pictures[0].size, arguments)
        save(grid, jobs[0], text, arguments.force)
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
    for job in jobs[:1] if arguments.grid else jobs:
        if not arguments.force and os.path.lexists(job.path):
            raise ImageError(f"{job.path} already exists; choose another --output, or add --force")
        check_output(job.path, overwrite=True)
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


def draw(
    pipe: Pipeline,
    batch: list[Job],
    image: Image | None,
    arguments: argparse.Namespace,
    say: Callable[[str], None],
) -> tuple[list[Image], int]:
    """The pictures of a batch, with progress on stderr; and the number of steps run."""
    from tqdm import tqdm

    stream = pipe.stream(
        [job.text for job in batch],
        negative_prompt=arguments.negative_prompt,
        image=image,
        strength=arguments.strength,
        num_inference_steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale,
        seed=batch[0].seed,
        sampler=arguments.sampler,
        eta=arguments.eta,
        clip_skip=arguments.clip_skip,
        width=arguments.width,
        height=arguments.height,
    )
    first, last = batch[0].seed, batch[-1].seed
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    levels, start = pipe.schedule(
        arguments.num_inference_steps,
        None if image is None else arguments.strength,
        arguments.sampler,
    )
    steps, total = len(levels), len(levels) - start
    told = f"{steps} step{'s' * (steps > 1)}"
    if image is not None:
        width, height = arguments.width, arguments.height
        told = f"{width}x{height}, strength {arguments.strength:g}: {total} of {steps} steps"
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

    choice, defaults = pipe.choose_sampler(arguments.sampler), pipe.defaults
    scale = arguments.guidance_scale
    return format_parameters(
        {
            "Prompt": job.prompt,
            "Negative prompt": arguments.negative_prompt,
            "Steps": arguments.num_inference_steps or defaults.num_inference_steps,
            "Sampler": SAMPLERS[choice.name].label,
            "Schedule type": schedule_type(choice.karras),
            "CFG scale": number(defaults.guidance_scale if scale is None else scale),
            "Seed": job.seed,
            "Size": f"{size[0]}x{size[1]}",
            "Model": model_name(arguments.model),
            "VAE": model_name(arguments.vae) if arguments.vae else None,
            "Denoising strength": None if arguments.image is None else number(arguments.strength),
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


def number(value: float) -> str:
    """Exactly, but 7 rather than 7.0."""
    return repr(float(value)).removesuffix(".0")


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
