"""The arguments of ``ldm-generate``, and what can be checked before PyTorch is imported."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ldm import __version__
from ldm.cli.common import EXIT_CODES, Parser, check_counts
from ldm.errors import ArgumentError
from ldm.samplers import SAMPLERS, start_index

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
KARRAS = "_karras"
STRENGTH = 0.8
MAX_SEED = 2**63 - 1  # as PyTorch's generators and ldm.noise take it
MAX_PICTURES = 100_000  # of one command; more is a slip of the finger


def parser() -> Parser:
    """The arguments, named as diffusers names them."""
    samplers = [
        name + suffix for name, row in SAMPLERS.items() for suffix in ("", KARRAS)[: 1 + row.karras]
    ]
    parser = Parser(
        prog="ldm-generate",
        description="Draw pictures of a text. Without --model, the small built-in model draws "
        "icons of everyday things, 128 pixels wide, offline. Prints the names of the files on "
        "stdout, all else on stderr.",
        epilog=EXIT_CODES,
        allow_abbrev=False,  # else a new option could change what an old script means
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
        type=filled,
        metavar="PATH",
        help="a diffusers folder, a single file or a hub id (default: the built-in model)",
    )
    add_model_options(parser)
    add(
        "--lora-dir",
        type=Path,
        default=Path("."),
        metavar="DIR",
        help="where <lora:name:0.8> in a prompt looks for name.safetensors (default: here)",
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
        metavar="FILE",
        help=".png, .jpg or .webp; numbered where there are several (default: a .png named after "
        "the prompt and the seed)",
    )
    add("--force", action="store_true", help="overwrite files that exist")
    add("-i", "--image", type=filled, metavar="FILE", help="an image to start from")
    add(
        "--strength",
        type=float,
        metavar="S",
        help=f"how much of the image to redraw, 0 to 1 (default: {STRENGTH})",
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
        help="how closely to follow the text; off up to 1 (default: as the model advises)",
    )
    add(
        "--seed",
        type=int,
        default=-1,
        metavar="N",
        help="the first picture's seed; the next ones count up (default: -1, a random one)",
    )
    add("--num-images", type=int, default=1, metavar="N", help="pictures of each text (default: 1)")
    add(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="pictures drawn at once; does not change them (default: 8)",
    )
    for short, side in (("-W", "width"), ("-H", "height")):
        add(
            short,
            f"--{side}",
            type=int,
            metavar="PX",
            help="pixels, a multiple of 8 (default: the model's, or as the image's shape asks)",
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
    add("--device", type=filled, help="cpu, cuda, cuda:1, ... (default: CUDA where there is one)")
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


def add_model_options(parser: Parser) -> None:
    """How a model is loaded, the same for every command that loads one."""
    add = parser.add_argument
    add("--vae", type=filled, metavar="PATH", help="a folder or file of another VAE to use")
    add(
        "--lora",
        action="append",
        default=[],
        type=filled,
        metavar="FILE[:SCALE]",
        help="a LoRA to put onto the model; may be repeated",
    )
    add(
        "--ema",
        action="store_true",
        help="take the averaged copy of the U-Net's weights that a full training checkpoint holds",
    )
    add("--variant", type=filled, help='such as "fp16": which of a folder\'s files to prefer')
    add(
        "--prediction-type",
        choices=PREDICTION_TYPES,
        help="what the U-Net predicts (default: as the model says)",
    )


def model_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """What of these options ``Pipeline.from_pretrained`` takes; LoRAs are put on afterwards."""
    return {name: getattr(arguments, name) for name in ("vae", "variant", "prediction_type", "ema")}


def filled(text: str) -> str:
    """An argument that must not be empty, as a variable that is not set makes it."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a value, or leave the option out")
    return text


def check(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for what no model could do; ``Pipeline.stream`` checks the rest."""
    check_counts(arguments, "num_images", "batch_size", "num_inference_steps", "width", "height")
    count = len(arguments.prompt) * arguments.num_images
    if count > MAX_PICTURES:
        raise ArgumentError(f"these are {count} pictures; one command draws at most {MAX_PICTURES}")
    if not -1 <= arguments.seed <= MAX_SEED - count:
        raise ArgumentError(
            f"--seed is {arguments.seed}; it must be in [0, 2^63 - {count + 1}], "
            "or -1 for a random one"
        )
    if arguments.strength is None:
        arguments.strength = STRENGTH
    elif arguments.image is None:
        raise ArgumentError("--strength says how much of an --image to redraw; give that, too")
    start_index(1, arguments.strength)
