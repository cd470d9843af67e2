"""The arguments of ``ldm-generate``, and the checks that need no PyTorch."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import Any

from ldm import __version__
from ldm.cli.choices import add_choices
from ldm.cli.command_options import (
    ListSamplers,
    add_adapters,
    add_files,
    add_ip_adapter,
    add_loading,
    add_lora,
    add_many,
    add_model,
    add_output,
    add_picture_reader,
    add_preprocessed,
    add_refiner,
    add_speed,
)
from ldm.cli.common import EXIT_CODES, check_counts
from ldm.cli.controlnets import check_control
from ldm.cli.fields import EVERYDAY, FIELDS, GROUPS, add_field
from ldm.cli.guidance_options import check_steering
from ldm.cli.help import add_help
from ldm.cli.ip_adapters import check_ip_adapters
from ldm.cli.parsing import Checker
from ldm.cli.style_options import check_style
from ldm.config.arguments import about
from ldm.config.picture_readers import CONTROLNET, T2I_ADAPTER
from ldm.errors import ArgumentError
from ldm.request import RefinedRequest
from ldm.samplers import read_names, start_index
from ldm.samplers.loop import MAX_SEED

MAX_PICTURES = 100_000  # of one command; more is a typing error
NAMED = "named_prompts"  # texts that are given by --prompt
EXAMPLES = """\
examples:
  %(prog)s "a red car"
  %(prog)s "three blue birds" --seed 7 -b 4 -o birds.png
  %(prog)s "a green car" -i car.png --strength 0.6
  %(prog)s "a cat" -m model.safetensors --steps 25 -W 768 -H 512
  %(prog)s --prompts texts.txt -o out/
  %(prog)s --from picture.png

--help-all shows all options. Defaults of your own stand in ldm.toml, such as: steps = 25
"""


@functools.cache
def parser() -> Checker:
    """Build the parser of the command line, once; it raises ArgumentError."""
    parser = Checker(
        prog="ldm-generate",
        usage="%(prog)s [options] PROMPT ...",
        description="Draw pictures of a text. Without --model, the small built-in model draws "
        "icons of everyday things, 128 pixels wide, offline. Prints the names of the files on "
        "stdout, all else on stderr.",
        epilog=EXAMPLES + EXIT_CODES,
        add_help=False,
    )
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    everyday = groups["everyday"]
    add_field(everyday, "prompt")
    everyday.add_argument(
        *("-p", "--prompt"), dest=NAMED, action="append", default=[], metavar="TEXT",
        help="the same, as an option; may be repeated",
    )  # fmt: skip
    add_output(everyday.add_argument)
    for name in EVERYDAY:
        add_field(everyday, name)
    add_model(everyday.add_argument)
    add_lora(everyday.add_argument)
    for group, kind in {"control": CONTROLNET, "t2i_adapter": T2I_ADAPTER}.items():
        add_picture_reader(groups[group].add_argument, kind)
    add_preprocessed(groups["control"].add_argument)
    add_ip_adapter(groups["ip_adapter"].add_argument)
    for name, field in FIELDS.items():
        if name not in ("prompt", *EVERYDAY):
            add_field(groups[about(field).group], name)
    groups["sampling"].add_argument(
        "--list-samplers", action=ListSamplers, help="list all samplers and schedules, and exit"
    )
    add_refiner(groups["model"].add_argument)
    add_loading(groups["model"].add_argument)
    add_adapters(groups["model"].add_argument)
    add_many(groups["many"])
    add_choices(groups["many"])
    add_files(groups["files"])
    add_speed(groups["speed"])
    add = groups["other"].add_argument
    add(
        "--dry-run",
        action="store_true",
        help="list the pictures with their files and seeds, and the memory that they need; draw "
        "and write nothing",
    )
    add("--quiet", action="store_true", help="print nothing but errors and the names of the files")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="version", version=f"ldm {__version__}", help="print it, and exit")
    add_help(parser, groups["other"])
    parser.set_defaults(replay=(1, 0))  # (size, index) of the batch to draw a picture in
    parser.set_defaults(batch_prompts=())  # … if the pictures of that batch share a style
    parser.set_defaults(templates={})  # of --all: what each text was drawn from
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
    arguments.prompt = [*(arguments.prompt or ()), *(vars(arguments).pop(NAMED) or ())]
    if not unset:
        arguments.prompt = arguments.prompt or [""]
    return arguments


@functools.cache
def defaults() -> dict[str, Any]:
    """Return the default of every option."""
    return vars(read([]))


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
    check_control(arguments)
    check_style(arguments)
    check_ip_adapters(arguments)
    if arguments.strength is not None:
        if arguments.image is None:
            raise ArgumentError("--strength says how much of an --image to redraw; give that, too")
        start_index(1, arguments.strength)
    if arguments.refiner is not None and arguments.refiner_start is None:
        arguments.refiner_start = RefinedRequest.refiner_start
    elif arguments.refiner is not None:
        RefinedRequest(refiner_start=arguments.refiner_start)
