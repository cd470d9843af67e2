"""The arguments of ``ldm-generate``, and the checks that need no PyTorch."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm import __version__
from ldm.checkpoints.prediction import KNOWN_PREDICTIONS
from ldm.cli.common import EXIT_CODES, Checker, Parser, check_counts, put, run
from ldm.cli.fields import GROUPS, add_fields, filled
from ldm.cli.guidance_options import Fast, check_steering
from ldm.errors import ArgumentError
from ldm.request import RefinedRequest
from ldm.samplers import read_names, start_index
from ldm.samplers.loop import MAX_SEED
from ldm.samplers.names import listing

MAX_PICTURES = 100_000  # of one command; more is a typing error


@functools.cache
def parser() -> Checker:
    """Build the parser of the command line, once; it raises ArgumentError."""
    parser = Checker(
        prog="ldm-generate",
        description="Draw pictures of a text. Without --model, the small built-in model draws "
        "icons of everyday things, 128 pixels wide, offline. Prints the names of the files on "
        "stdout, all else on stderr.",
        epilog=EXIT_CODES,
        allow_abbrev=False,  # else a new option could change what an old script means
    )
    add = parser.add_argument
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    add_fields(groups)
    add(
        "--prompts",
        type=filled,
        metavar="FILE",
        help="a file of texts, one a line; or of JSON, one object a line with the prompt and other "
        "arguments",
    )
    add(
        "--from",
        dest="from_file",
        type=filled,
        metavar="PICTURE",
        help="draw a picture again with the arguments that its file holds, ldm's or A1111's; "
        "others that you give go before them",
    )
    add(
        "-m",
        "--model",
        type=filled,
        metavar="PATH",
        help="a diffusers folder, a single file or a hub id (default: the built-in model)",
    )
    add(
        "--refiner",
        type=filled,
        metavar="PATH",
        help="a second model that draws the last steps, from --refiner-start on, such as SDXL's "
        "refiner; both stay in memory, and LoRAs are put onto the first",
    )
    add_model_options(parser)
    add(
        "--lora-dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where <lora:name:0.8> in a prompt, or <lora:name:TE:UNET>, looks for "
        "name.safetensors (default: here)",
    )
    add(
        "--embedding",
        action="append",
        default=[],
        type=filled,
        metavar="FILE",
        help="a textual inversion, used by its word in prompts; may be repeated",
    )
    add(
        "-o",
        "--output",
        type=filled,
        metavar="PATH",
        help=".png, .jpg or .webp; numbered where there are several. Or a folder, such as out/, "
        "for files named after the prompt and the seed (default: here)",
    )
    add("--force", action="store_true", help="overwrite files that exist")
    add(
        "--skip-existing",
        action="store_true",
        help="draw only what is missing: a run that was stopped goes on (needs --seed)",
    )
    add(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="pictures drawn at once; does not change them (default: 8)",
    )
    add("--list-samplers", action=ListSamplers, help="list all samplers and schedules, and exit")
    add("--device", type=filled, help="cpu, cuda, cuda:1, ... (default: CUDA where there is one)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="number format (default: chosen by the device)",
    )
    add_speed_options(groups["speed"])
    add("--grid", action="store_true", help="save one picture with all of them side by side")
    for option, direction in (("--x", "columns"), ("--y", "rows")):
        add(
            option,
            type=filled,
            metavar="NAME=V,V",
            help=f"save one picture of many, with these values of an argument as {direction}, "
            'such as "guidance_scale=2,4,8" or "sampler=ddim,euler"; all have the same seed',
        )
    add("--no-labels", action="store_true", help="write no words on --grid, --x and --y")
    add(
        "--save-steps",
        action="store_true",
        help="save a strip of the picture at up to 10 steps beside it",
    )
    add(
        "--animation",
        choices=("webp", "png", "gif"),
        help="save an animation of the steps beside the picture, in rough colours",
    )
    add(
        "--preview-vae",
        type=filled,
        metavar="PATH",
        help="a TAESD, as a folder or a file, that draws the frames of --animation in full detail",
    )
    add(
        "--explain",
        action="store_true",
        help="save where each word of the text looked, beside the picture",
    )
    add("--quiet", action="store_true", help="print nothing but errors and the names of the files")
    add("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(replay=(1, 0))  # (size, index) of the batch to draw a picture in
    add("--version", action="version", version=f"ldm {__version__}")
    return parser


def read(argv: Sequence[str], unset: bool = False) -> argparse.Namespace:
    """Read a command line. Raises ArgumentError if it is wrong.

    unset: use None in place of the defaults, to find the options that are given.
    """
    rules = parser()
    namespace = argparse.Namespace()
    if unset:
        namespace = argparse.Namespace(**dict.fromkeys(defaults()))
    # Texts may also stand between options, but argparse then does not know "--".
    parse = rules.parse_args if "--" in argv else rules.parse_intermixed_args
    arguments = parse(argv, namespace)
    if not unset:
        arguments.prompt = arguments.prompt or [""]
    return arguments


@functools.cache
def defaults() -> dict[str, Any]:
    """Return the default of every option."""
    return vars(read([]))


def add_speed_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that trade fidelity, memory or the time to start for speed."""
    add = group.add_argument
    add(
        "--fast",
        action=Fast,
        nargs=0,
        help="another picture, sooner: --guidance-interval 0.28,5.42 --deep-cache 3, and --int8 "
        "where that gains; what follows on the line overrules it",
    )
    add(
        "--optimize",
        action=argparse.BooleanOptionalAction,
        help="compute faster, with the same results but for rounding (default: yes on a CPU, no "
        "on CUDA, where it was never measured)",
    )
    add(
        "--compile",
        action="store_true",
        help="compile the model's blocks first, by torch.compile: for many pictures",
    )
    add(
        "--offload",
        action="store_true",
        help="keep only the part that computes in the GPU's memory: slower, in less of it",
    )
    add(
        "--int8",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute in 8-bit integers on a CPU: another picture, faster but for bfloat16 where "
        "the processor has AMX",
    )


def add_model_options(parser: Parser) -> None:
    """Add the options for loading a model, the same for every command that loads one."""
    add = parser.add_argument
    add(
        "--vae",
        type=filled,
        metavar="PATH",
        help="a folder or file of another VAE to use, or of a TAESD",
    )
    add(
        "--text-encoder",
        action="append",
        default=[],
        type=filled,
        metavar="PATH",
        help="a folder or file of a text encoder to use, also for a file that lacks it; may be "
        "repeated",
    )
    add(
        "--lora",
        action="append",
        default=[],
        type=filled,
        metavar="FILE[:SCALE]",
        help="a LoRA to put onto the model; may be repeated. FILE:TE:UNET scales it by TE in the "
        "text encoder, by UNET in the U-Net",
    )
    add(
        "--partial-lora",
        action="store_true",
        help="use a LoRA file of which only some keys fit the model, and say what is left out",
    )
    add(
        "--ema",
        action="store_true",
        help="take the averaged copy of the U-Net's weights that a full training checkpoint holds",
    )
    add("--variant", type=filled, help='such as "fp16": which of a folder\'s files to prefer')
    add(
        "--prediction-type",
        choices=KNOWN_PREDICTIONS,
        help="what the U-Net predicts (default: as the model says)",
    )


class ListSamplers(argparse.Action):
    """The option ``--list-samplers``, which prints them and exits, as ``--version`` does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, nargs=0)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print to stdout; exit code 0."""
        parser.exit(run(lambda: put(f"{listing()}\n".encode()), debug=False))


def model_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options for ``Pipeline.from_pretrained``; LoRAs are loaded afterwards."""
    names = ("vae", "text_encoder", "variant", "prediction_type", "ema")
    return {name: getattr(arguments, name) for name in names}


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for what no model can do; ``Pipeline.stream`` checks the rest."""
    if arguments.prompts is not None:
        others = {"a prompt": arguments.prompt != [""]}
        others |= {f"--{name}": getattr(arguments, name) for name in ("grid", "x", "y")}
        for name, given in others.items():
            if given:
                raise ArgumentError(f"--prompts takes all texts from a file; leave {name} out")
    counts = ("num_images", "batch_size", "num_inference_steps", "width", "height", "clip_skip")
    check_counts(arguments, *counts)
    count = len(arguments.prompt) * arguments.num_images
    if count > MAX_PICTURES:
        raise ArgumentError(f"these are {count} pictures; one command draws at most {MAX_PICTURES}")
    if not -1 <= arguments.seed <= MAX_SEED - count:
        raise ArgumentError(
            f"--seed is {arguments.seed}; it must be in [0, 2^63 - {count + 1}], "
            "or -1 for a random one"
        )
    if arguments.skip_existing and (arguments.seed == -1 or arguments.force or arguments.grid):
        raise ArgumentError(
            "--skip-existing needs a --seed, by which files are known again, and goes neither "
            "with --force nor with --grid"
        )
    if arguments.preview_vae is not None and not arguments.animation:
        raise ArgumentError("--preview-vae draws the frames of an --animation; give that, too")
    read_names(arguments.sampler, arguments.schedule)
    if arguments.prompts is not None:  # each line is checked with its own arguments
        return
    check_steering(arguments)
    if arguments.strength is not None:
        if arguments.image is None:
            raise ArgumentError("--strength says how much of an --image to redraw; give that, too")
        start_index(1, arguments.strength)
    if arguments.refiner is not None and arguments.refiner_start is None:
        arguments.refiner_start = RefinedRequest.refiner_start
    elif arguments.refiner is not None:
        RefinedRequest(refiner_start=arguments.refiner_start)
