"""``ldm-generate``: draw pictures of a prompt."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm import __version__
from ldm.cli.common import run
from ldm.errors import ArgumentError
from ldm.samplers import SAMPLERS, schedule_type

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.pipeline import Output, Pipeline

KARRAS = "_karras"


def parser() -> argparse.ArgumentParser:
    """The command's arguments, named as diffusers names them."""
    samplers = [
        name + suffix for name, row in SAMPLERS.items() for suffix in ("", KARRAS)[: 1 + row.karras]
    ]
    parser = argparse.ArgumentParser(
        prog="ldm-generate",
        description="Draw pictures of a text. Without --model, the small built-in model draws icons of "
        "everyday things, 128 pixels wide, offline.",
    )
    add = parser.add_argument
    add(
        "prompt",
        nargs="*",
        default=[""],
        help='what to draw, such as "a red car"; several texts make several pictures',
    )
    add("-n", "--negative-prompt", default="", metavar="TEXT", help="what to steer away from")
    add(
        "-m",
        "--model",
        metavar="PATH",
        help="a diffusers folder or a hub id (default: the built-in model)",
    )
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where to save (default: named after the prompt and the seed)",
    )
    add("--force", action="store_true", help="overwrite files that exist")
    add("-i", "--image", metavar="FILE", help="an image to start from")
    add(
        "--strength",
        type=float,
        default=0.8,
        metavar="S",
        help="how much of the image to redraw, 0 to 1 (default: 0.8)",
    )
    add(
        "-s",
        "--num-inference-steps",
        "--steps",
        type=int,
        metavar="N",
        help="denoising steps (default: as the model advises)",
    )
    add(
        "-g",
        "--guidance-scale",
        type=float,
        metavar="S",
        help="how closely to follow the text (default: as the model advises)",
    )
    add(
        "--seed",
        type=int,
        metavar="N",
        help="the first picture's seed; the next ones count up (default, or -1: random)",
    )
    add(
        "--num-images",
        type=int,
        default=1,
        metavar="N",
        help="pictures of each prompt (default: 1)",
    )
    add(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="pictures drawn at once; does not change them (default: 8)",
    )
    add(
        "-W",
        "--width",
        type=int,
        metavar="PX",
        help="a multiple of 8 (default: the model's, or the image's)",
    )
    add(
        "-H",
        "--height",
        type=int,
        metavar="PX",
        help="a multiple of 8 (default: the model's, or the image's)",
    )
    add("--sampler", choices=samplers, help="the sampling method (default: the model's own)")
    add(
        "--eta",
        type=float,
        default=0.0,
        metavar="E",
        help="noise that the ddim sampler adds, 0 to 1 (default: 0)",
    )
    add(
        "--clip-skip",
        type=int,
        default=1,
        metavar="N",
        help="1: the text encoder's last layer, 2: the one before (default: 1)",
    )
    add("--device", help="cpu, cuda, cuda:1, … (default: CUDA where there is one)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="number format (default: chosen by the device)",
    )
    add("--grid", action="store_true", help="save one picture with all of them side by side")
    add("--quiet", action="store_true", help="print nothing but errors and the names of the files")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="version", version=f"ldm {__version__}")
    return parser


def generate(arguments: argparse.Namespace) -> None:
    """Check what can be checked, load the model, draw batch by batch, save each picture as it is done."""
    check(arguments)

    from ldm.images import load_image  # before torch: a wrong file is told at once

    image = load_image(arguments.image) if arguments.image else None
    began = time.monotonic()
    say = (lambda text: None) if arguments.quiet else (lambda text: print(text, file=sys.stderr))

    from ldm.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(arguments.model, device=arguments.device, dtype=arguments.dtype)
    size = {"height": arguments.height, "width": arguments.width}
    if image is not None:
        size = image_size(pipe, image, size, say)
    jobs = [prompt for prompt in arguments.prompt for _ in range(arguments.num_images)]
    seed = first_seed(arguments.seed)
    drawn: list[tuple[Image.Image, str, int]] = []
    for start in range(0, len(jobs), arguments.batch_size):
        prompts = jobs[start : start + arguments.batch_size]
        output = draw(pipe, prompts, seed + start, image, size, arguments)
        for prompt, picture, used in zip(prompts, output.images, output.seeds, strict=True):
            drawn.append((picture, prompt, used))
            if not arguments.grid:
                save(
                    pipe,
                    picture,
                    prompt,
                    used,
                    file_name(arguments, prompt, used, len(drawn), len(jobs)),
                    arguments,
                )
    if arguments.grid:
        from ldm.images import image_grid

        picture = image_grid([picture for picture, _, _ in drawn])
        save(
            pipe,
            picture,
            arguments.prompt[0],
            seed,
            file_name(arguments, arguments.prompt[0], seed, 1, 1),
            arguments,
        )
    say(
        f"{len(drawn)} picture{'s' * (len(drawn) > 1)} in {time.monotonic() - began:.1f} s, loading included"
    )


def check(arguments: argparse.Namespace) -> None:
    """Whatever is wrong with the arguments is said before the model is loaded."""
    from ldm.images import check_output
    from ldm.samplers import start_index

    for name in ("num_images", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ArgumentError(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least 1"
            )
    if arguments.num_inference_steps is not None and arguments.num_inference_steps < 1:
        raise ArgumentError(
            f"--num-inference-steps is {arguments.num_inference_steps}; it must be at least 1"
        )
    start_index(1, arguments.strength)
    if arguments.output:
        count = 1 if arguments.grid else len(arguments.prompt) * arguments.num_images
        for number in range(1, count + 1):
            check_output(file_name(arguments, "", 0, number, count), overwrite=arguments.force)


def image_size(
    pipe: Pipeline, image: Image, size: dict[str, int | None], say: object
) -> dict[str, int | None]:
    """Without a size, a picture larger than the model draws is made smaller, keeping its shape."""
    own_height, own_width = pipe.default_size()
    if size["height"] or size["width"] or image.width * image.height <= own_width * own_height:
        return size
    factor = pipe.vae.config.scale
    ratio = (own_width * own_height / (image.width * image.height)) ** 0.5
    size = {
        "height": max(factor, round(image.height * ratio / factor) * factor),
        "width": max(factor, round(image.width * ratio / factor) * factor),
    }
    say(
        f"the image is made {size['width']}x{size['height']}, the size of this model; --width and --height decide else"
    )
    return size


def first_seed(seed: int | None) -> int:
    """The seed given, or a random one for none and for -1."""
    if seed is None or seed == -1:
        import secrets

        return secrets.randbelow(2**32)
    return seed


def draw(
    pipe: Pipeline,
    prompts: list[str],
    seed: int,
    image: Image | None,
    size: dict[str, int | None],
    arguments: argparse.Namespace,
) -> Output:
    """One batch, with a progress bar on stderr."""
    from tqdm import tqdm

    stream = pipe.stream(
        prompts,
        negative_prompt=arguments.negative_prompt,
        image=image,
        strength=arguments.strength,
        num_inference_steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale,
        seed=seed,
        sampler=arguments.sampler,
        eta=arguments.eta,
        clip_skip=arguments.clip_skip,
        **size,
    )
    bar = None
    try:
        for progress in stream:
            if bar is None:
                title = "drawing"
                if image is not None:
                    steps = arguments.num_inference_steps or pipe.defaults.num_inference_steps
                    title = f"strength {arguments.strength:g}: {progress.steps} of {steps} steps"
                bar = tqdm(
                    total=progress.steps,
                    desc=title,
                    unit="step",
                    disable=arguments.quiet,
                    leave=False,
                )
            bar.update(progress.step - bar.n)
    finally:
        if bar is not None:
            bar.close()
    return progress.output


def file_name(
    arguments: argparse.Namespace, prompt: str, seed: int, number: int, count: int
) -> Path:
    """``--output``, numbered where there are several; else a name made of the prompt and the seed."""
    if arguments.output is None:
        words = "".join(c if c.isalnum() else "-" for c in prompt.lower())
        stem = "-".join(part for part in words.split("-") if part)[:60] or "picture"
        return Path(f"{stem}-{seed}.png")
    if count == 1:
        return arguments.output
    return arguments.output.with_stem(f"{arguments.output.stem}-{number}")


def save(
    pipe: Pipeline,
    picture: Image,
    prompt: str,
    seed: int,
    path: Path,
    arguments: argparse.Namespace,
) -> None:
    """Write the picture with its parameters, as A1111 writes them, and print the file's name."""
    from ldm.images import save_image
    from ldm.metadata import format_parameters

    choice = pipe.choose_sampler(arguments.sampler)
    defaults = pipe.defaults
    text = format_parameters(
        {
            "Prompt": prompt,
            "Negative prompt": arguments.negative_prompt,
            "Steps": arguments.num_inference_steps or defaults.num_inference_steps,
            "Sampler": SAMPLERS[choice.name].label,
            "Schedule type": schedule_type(choice.karras),
            "CFG scale": f"{defaults.guidance_scale if arguments.guidance_scale is None else arguments.guidance_scale:g}",
            "Seed": seed,
            "Size": f"{picture.width}x{picture.height}",
            "Model": Path(arguments.model).name if arguments.model else "ldm built-in",
            "Denoising strength": f"{arguments.strength:g}" if arguments.image else None,
            "Clip skip": arguments.clip_skip if arguments.clip_skip > 1 else None,
            "RNG": "CPU",
            "Version": f"ldm {__version__}",
        }
    )
    save_image(picture, path, text, overwrite=arguments.force)
    print(path if arguments.quiet else f"{path}  (seed {seed})", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    return run(lambda: generate(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
