"""``ldm-convert``: a model in another layout or number format, with LoRAs merged."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm import __version__
from ldm.checkpoints.describe_control import find_reader
from ldm.checkpoints.model_folder import find_model
from ldm.cli.command_options import add_loading, add_lora
from ldm.cli.common import EXIT_CODES, importing_torch, run
from ldm.cli.configuration import default_model_dir
from ldm.cli.loras import lora_option
from ldm.cli.options import model_arguments
from ldm.cli.parsing import Parser
from ldm.cli.printed import notify, put_name
from ldm.config.picture_readers import CONTROLNET
from ldm.errors import ArgumentError, LDMError
from ldm.writing import claim, whole_path

if TYPE_CHECKING:
    from ldm.control.controlnet import ControlNet

FILES = (".safetensors", ".sft", ".gguf")
FORMATS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "q8_0")
SHORT = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}  # as GGUF files are named


def parser(prog: str = "ldm-convert") -> Parser:
    """Build the parser of the command's arguments."""
    parser = Parser(
        prog=prog,
        description="Write a model as a diffusers folder, or as a single file under the original "
        "names (an OUTPUT that ends in .safetensors, or in .gguf).",
        epilog=EXIT_CODES,
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="a diffusers folder, a single file or a hub id; or a ControlNet's folder or file",
    )
    add(
        "output",
        metavar="OUTPUT",
        type=Path,
        help="a folder, or a file ending in .safetensors or .gguf",
    )
    add_loading(add)
    add_lora(add)
    add(
        "--dtype",
        type=lambda name: SHORT.get(name.lower(), name.lower()),
        choices=FORMATS,
        help="number format to write; q8_0 is only for .gguf, and its default (else that of MODEL, "
        "where float8 becomes float16, and blocks float32). In float8 and q8_0, biases, norms, "
        "embeddings and the VAE stay float16 or finer",
    )
    add("--force", action="store_true", help="overwrite an OUTPUT that exists")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="version", version=f"ldm {__version__}")
    return parser


def convert(arguments: argparse.Namespace) -> None:
    """Load, merge and write, whole or not at all."""
    output: Path = arguments.output
    check_format(arguments.dtype, output)
    if os.path.lexists(output) and not arguments.force:
        raise LDMError(f"{output} already exists; choose another OUTPUT, or add --force")
    ours = (output / "model_index.json").is_file() or find_reader(output) == CONTROLNET
    if output.is_dir() and any(output.iterdir()) and not ours:
        raise LDMError(f"{output} is a folder, but of no model; it is not overwritten")
    if not output.absolute().parent.is_dir():
        raise LDMError(f"{output.parent} is not a folder; create it, or choose another OUTPUT")
    loras = [lora_option(text) for text in arguments.lora]
    folder = default_model_dir() if arguments.model_dir is None else arguments.model_dir
    model = find_model(arguments.model, folder)

    with importing_torch():
        from ldm.checkpoints.number_formats import FORMATS as FORMAT_BY_NAME
        from ldm.checkpoints.pickles import weights_alone
        from ldm.loading.write_controlnet import save_controlnet

    single = output.suffix.lower() in FILES
    with weights_alone():
        network = load_controlnet_alone(model, bool(loras))
    save = load_saver(arguments, model, single) if network is None else None
    dtype = arguments.dtype and FORMAT_BY_NAME[arguments.dtype]  # None keeps what MODEL has
    with claim(output) as granted:
        if not granted:
            raise LDMError(f"another process writes {output}; choose another OUTPUT, or wait")
        with whole_path(output) as new:
            if network is not None:
                save_controlnet(network, new, dtype, single)
            elif save is not None:
                save(new, dtype)
    put_name(output)


def load_saver(
    arguments: argparse.Namespace, model: str | None, single: bool
) -> Callable[[Path, Any], None]:
    """Load the model with its LoRAs; return what writes it."""
    from ldm.checkpoints.pickles import weights_alone
    from ldm.loading.folder import save_folder
    from ldm.loading.write_file import save_file
    from ldm.pipeline import Pipeline

    with weights_alone():
        pipe = Pipeline.from_pretrained(
            model, device="cpu", dtype="auto", **model_arguments(arguments)
        )
    for text in arguments.lora:
        path, scale = lora_option(text)
        partial = arguments.partial_lora
        notify(pipe.load_lora_weights(path, scale=scale._asdict(), partial=partial).summary)
    return functools.partial(save_file if single else save_folder, pipe.parts)


def load_controlnet_alone(model: str | None, changed: bool) -> ControlNet | None:
    """Load a ControlNet that is to be converted; None if MODEL is anything else.

    Raises ArgumentError if it is one and would be ``changed`` by LoRAs.
    """
    from ldm.loading.write_controlnet import load_alone

    path = None if model is None else Path(model).expanduser()
    network = None if path is None else load_alone(path)
    if network and changed:
        raise ArgumentError(f"{model} is a ControlNet; LoRAs are for models: leave --lora out")
    return network


def check_format(dtype: str | None, output: Path) -> None:
    """Raise ArgumentError for a number format that OUTPUT cannot have, before anything is read."""
    gguf = output.suffix.lower() == ".gguf"
    if dtype == "q8_0" and not gguf:
        raise ArgumentError(f"--dtype is q8_0, but {output} is no GGUF; let OUTPUT end in .gguf")
    if gguf and dtype and dtype.startswith("float8"):
        raise ArgumentError(
            f"--dtype is {dtype}, but {output} is a GGUF, which has q8_0 in its place; "
            "choose q8_0, or let OUTPUT end in .safetensors"
        )
    if gguf and importlib.util.find_spec("gguf") is None:
        raise ArgumentError(
            f"{output} is to be a GGUF file, for which the package gguf is needed: "
            "pip install 'ldm[gguf]'"
        )


def main(argv: Sequence[str] | None = None, prog: str = "ldm-convert") -> int:
    """Entry point; returns the exit code. prog: what the user called it."""
    arguments = parser(prog).parse_args(argv)
    return run(lambda: convert(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
