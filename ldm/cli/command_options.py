"""The options of ``ldm generate`` that are not about one picture: models, files, speed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.checkpoints.prediction import KNOWN_PREDICTIONS
from ldm.cli.common import run
from ldm.cli.controlnets import preprocessed
from ldm.cli.fast import Fast
from ldm.cli.fields import filled
from ldm.cli.printed import put_text
from ldm.cli.ways import add_ways
from ldm.config.picture_readers import CONTROLNET, PictureReader
from ldm.samplers.names import listing

Add = Callable[..., argparse.Action]


def add_output(add: Add) -> None:
    """Add the option for the files to write."""
    add(
        *("-o", "--output"),
        type=filled,
        metavar="PATH",
        help=".png, .jpg or .webp; numbered if there are several. A folder, such as out/, for "
        "files named after the prompt and the seed (default: here); a template, such as "
        "out/{prompt}-{seed}.png; - for stdout",
    )


def add_model(add: Add) -> None:
    """Add the option for the model, and the ones for what changes it most."""
    add(
        *("-m", "--model"),
        type=filled,
        metavar="PATH",
        help="a diffusers folder, a single file, a hub id or a name in --model-dir (default: the "
        "built-in model)",
    )


def add_refiner(add: Add) -> None:
    """Add the option for a model that draws the last steps."""
    add(
        "--refiner",
        type=filled,
        metavar="PATH",
        help="a second model that draws the last steps, from --refiner-start on, such as SDXL's "
        "refiner; both stay in memory, and LoRAs are put onto the first",
    )


def add_picture_reader(add: Add, kind: PictureReader) -> None:
    """Add the option for ControlNets, or for T2I-Adapters."""
    own = "" if kind != CONTROLNET else " (default: the model's own, if its folder has one)"
    add(
        kind.flag,
        action="append",
        default=[],
        type=filled,
        metavar="PATH[:SCALE]",
        help=f"a {kind.name}, as a folder or a file, that steers by {kind.image_flag}; may be "
        f"repeated{own}",
    )


def add_preprocessed(add: Add) -> None:
    """Add the options for pictures that are preprocessed, and to see what networks see."""
    add(
        "--control",
        dest="control_image",
        action="append",
        type=preprocessed,
        metavar="NAME:FILE",
        help="as --control-image, of a picture that is preprocessed: canny, softedge, scribble, "
        "lineart, tile, grey or inpaint, with parameters if you like: canny,low=50:car.png",
    )
    add(
        "--save-control",
        type=filled,
        metavar="PATH",
        help="save what a --controlnet sees, at the size that is drawn; PATH as of --output",
    )


def add_ip_adapter(add: Add) -> None:
    """Add the options for IP-Adapters."""
    add(
        "--ip-adapter",
        action="append",
        default=[],
        type=filled,
        metavar="PATH[:SCALE]",
        help="an IP-Adapter's file, which reads --ip-adapter-image; may be repeated (default: the "
        "model's own, if its folder has one)",
    )
    add(
        "--image-encoder",
        type=filled,
        metavar="PATH",
        help="the CLIP vision encoder of an --ip-adapter (default: found beside the adapter, or in "
        "the model's folder, as image_encoder)",
    )


def add_many(group: argparse._ArgumentGroup) -> None:
    """Add the options for many pictures, and for all of them on one."""
    add = group.add_argument
    add(
        "--prompts",
        type=filled,
        metavar="FILE",
        help="a file of texts, one a line; or of JSON, one object a line with the prompt and other "
        "arguments; - for stdin",
    )
    add(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="pictures drawn at once; does not change them (default: 8)",
    )
    add(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="draw in N processes of this machine, which share the pictures and the processor's "
        "cores (default: 1)",
    )
    add(
        "--skip-existing",
        action="store_true",
        help="draw only what is missing: a run that was stopped goes on (needs --seed)",
    )
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


def add_files(group: argparse._ArgumentGroup) -> None:
    """Add the options for files that are read again, and for files beside a picture."""
    add = group.add_argument
    add(
        "--from",
        dest="from_file",
        type=filled,
        metavar="PICTURE",
        help="draw a picture again with the arguments that its file holds, ldm's or A1111's; "
        "others that you give go before them",
    )
    add("--force", action="store_true", help="overwrite files that exist")
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
    add(
        "--json",
        action="store_true",
        help="print a line of JSON for each picture instead of its file's name: path, seed, "
        "prompt, seconds, settings; and one for each error",
    )


def add_speed(group: argparse._ArgumentGroup) -> None:
    """Add the options that trade fidelity, memory or the time to start for speed."""
    add = group.add_argument
    add("--device", type=filled, help="cpu, cuda, cuda:1, ... (default: CUDA if it is available)")
    add(
        *("-t", "--threads"),
        type=int,
        metavar="N",
        help="CPU threads (default: one a core, divided among the processes of this machine)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="number format (default: chosen by the device)",
    )
    add(
        "--fast",
        action=Fast,
        nargs=0,
        default=False,
        help="another picture, sooner: --few-steps if the model has them, else --guidance-interval "
        "0.28,5.42 --deep-cache 3, and --int8 where that gains; what follows on the line overrules "
        "it",
    )
    add(
        "--few-steps",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="draw in few steps, by the LoRA for them in the model's folder, with its sampler, "
        "steps and guidance scale unless you give others",
    )
    add(
        "--optimize",
        action=argparse.BooleanOptionalAction,
        help="compute faster, with the same results but for rounding (default: yes)",
    )
    add(
        "--compile",
        action="store_true",
        help="compile the model's blocks first, by torch.compile: for many pictures",
    )
    add_ways(add)


def add_lora(add: Add) -> None:
    """Add the option for LoRAs."""
    add(
        "--lora",
        action="append",
        default=[],
        type=filled,
        metavar="FILE[:SCALE]",
        help="a LoRA to put onto the model; may be repeated. FILE:TE:UNET scales it by TE in the "
        "text encoder, by UNET in the U-Net",
    )


def add_loading(add: Add) -> None:
    """Add the options for loading a model, the same for every command that loads one."""
    add(
        "--model-dir",
        type=Path,
        metavar="DIR",
        help="where --model NAME looks for NAME.safetensors, another file of that name or a "
        "folder (default: only here)",
    )
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


def add_adapters(add: Add) -> None:
    """Add the options for LoRAs and words that prompts name."""
    add(
        *("--lora-dir", "--lora-model-dir"),
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
        metavar="PATH",
        help="a textual inversion, used by its word in prompts, or the folder of a run that "
        "trained some; may be repeated",
    )


class ListSamplers(argparse.Action):
    """The option ``--list-samplers``, which prints them and exits, as ``--version`` does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, nargs=0)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print to stdout; exit code 0."""
        parser.exit(run(lambda: put_text(f"{listing()}\n"), debug=False))
