"""``ldm upscale``: pictures enlarged by a model, or by a filter."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm import __version__
from ldm.cli.common import EXIT_CODES, FAILED, importing_torch, run
from ldm.cli.configuration import default_model_dir
from ldm.cli.fields import filled
from ldm.cli.output_names import is_folder, is_template, make_folder
from ldm.cli.parsing import Parser
from ldm.cli.printed import fail, notify, put, put_name, put_text
from ldm.cli.rows import put_error, put_json, with_context
from ldm.cli.streams import STREAM, picture_source
from ldm.config.upscalers import LANCZOS
from ldm.errors import ArgumentError, LDMError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.upscaling import Upscaler

FILTER_SCALE, MOST = 2.0, 16.0  # the default of filters, which have none; the largest
STDIN_NAME = "picture"


def parser(prog: str = "ldm upscale") -> Parser:
    """Build the parser of the command's arguments."""
    parser = Parser(
        prog=prog,
        description="Enlarge pictures by a model (ESRGAN, Real-ESRGAN, SwinIR, DAT, …; with "
        "pip install 'ldm[upscaling]'), or by a filter. No file is overwritten; what a picture's "
        "file says of how it was made is kept, and completed as A1111's Extras do.",
        epilog=EXIT_CODES,
    )
    add = parser.add_argument
    add("pictures", nargs="*", metavar="PICTURE", help="a PNG, JPEG or WebP, …; - is stdin")
    add(
        *("-m", "--model"),
        type=filled,
        default=LANCZOS,
        metavar="NAME|FILE",
        help="a model's .safetensors or .pth, its name in --model-dir, or lanczos (default), "
        "nearest, bilinear, bicubic",
    )
    add(
        *("-x", "--scale"),
        type=float,
        metavar="X",
        help="how much larger along each side (default: as the model does; of filters 2). A model "
        "runs until the size is reached, and Lanczos fits the rest",
    )
    add(
        *("-o", "--output"),
        type=filled,
        metavar="PATH",
        help=".png, .jpg or .webp, numbered if there are several; a folder, such as out/ "
        "(default: beside each picture, as picture-2x.png); - for stdout",
    )
    add(
        "--model-dir",
        type=Path,
        metavar="DIR",
        help="where models' names are: in its ESRGAN, RealESRGAN, SwinIR, DAT, upscale_models, …, "
        "or in all of it if it has none of these",
    )
    add("--list-models", action="store_true", help="list the names that --model takes, and exit")
    add("--device", metavar="NAME", help="cpu, cuda, … (default: cuda if it is available)")
    add("--json", action="store_true", help="print a line of JSON for each picture on stdout")
    add("-q", "--quiet", action="store_true", help="print nothing on stderr but errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="version", version=f"ldm {__version__}")
    return parser


def upscale(arguments: argparse.Namespace) -> None:
    """Enlarge all pictures; one that fails stops no other."""
    folder = default_model_dir() if arguments.model_dir is None else arguments.model_dir
    if arguments.list_models:
        list_models(folder)
        return
    check(arguments)
    with importing_torch():
        from ldm.upscaling import load_upscaler

        try:
            upscaler = load_upscaler(arguments.model, folder, arguments.device)
        except ArgumentError as error:
            raise ArgumentError(f"--model: {error}") from None
    failed = 0
    for number, name in enumerate(arguments.pictures, 1):
        try:
            enlarge(name, number, upscaler, arguments)
        except LDMError as error:
            if len(arguments.pictures) == 1:
                raise
            failed += 1
            fail(str(error), FAILED)
            if arguments.json:
                put_error(str(error), FAILED)
    if failed:
        raise LDMError(f"{failed} of {len(arguments.pictures)} pictures were not enlarged")


def list_models(folder: Path | None) -> None:
    """Print the names of all upscalers of pictures."""
    from ldm.upscaling import list_upscalers

    names = dict.fromkeys(one.name for one in list_upscalers(folder) if not one.latent)
    put_text("".join(f"{name}\n" for name in names))


def check(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for what cannot work, ImageError for an output, before a model loads."""
    pictures, scale, output = arguments.pictures, arguments.scale, arguments.output
    if not pictures:
        raise ArgumentError("there is no picture; give one: ldm upscale picture.png")
    if pictures.count(STREAM) > 1:
        raise ArgumentError("standard input is one picture; give - once")
    if scale is not None and not (math.isfinite(scale) and 1 <= scale <= MOST):
        raise ArgumentError(f"--scale is {scale:g}; it must be in [1, {MOST:g}]")
    if output is None:
        return
    if output == STREAM:
        if len(pictures) > 1 or arguments.json:
            raise ArgumentError("--output - writes one picture to stdout, and no --json")
        if sys.stdout is None or sys.stdout.isatty():
            raise ArgumentError(
                "--output - writes a picture to stdout, which is a terminal; add > picture.png"
            )
    elif is_template(output):
        raise ArgumentError(f"--output is {output!r:.200}; no {{…}} is filled in here; give a name")
    elif is_folder(output):
        make_folder(Path(output))
    else:
        from ldm.images import check_output

        for number in range(1, len(pictures) + 1):
            check_output(given_path(output, number, len(pictures)))


def enlarge(name: str, number: int, upscaler: Upscaler, arguments: argparse.Namespace) -> None:
    """Enlarge one picture, write its file and print its name."""
    from ldm.upscaling.metadata import postprocess_text
    from ldm.upscaling.pictures import load_with_source

    began = time.monotonic()
    image, source = load_with_source(picture_source(name))
    scale = arguments.scale or float(upscaler.scale or FILTER_SCALE)
    width, height = (int(side * scale + 0.5) for side in image.size)
    large = upscaler(image, width, height)
    done = postprocess_text(scale, upscaler.name)
    path = save(large, source, done, name, number, scale, arguments)
    if not arguments.quiet:
        shown = "standard input" if name == STREAM else name
        notify(
            f"{shown}: {image.width}x{image.height} to {width}x{height} by {upscaler.name}, "
            f"{time.monotonic() - began:.1f} s"
        )
    if path is None:
        return
    row = {"path": str(path), "source": name, "width": width, "height": height}
    row |= {"upscaler": upscaler.name, "scale": scale}
    row["seconds"] = round(time.monotonic() - began, 3)
    with_context(path, lambda: put_json(row) if arguments.json else put_name(path))


def save(
    large: Image,
    source: Image,
    done: str,
    name: str,
    number: int,
    scale: float,
    arguments: argparse.Namespace,
) -> Path | None:
    """Write a picture under the name that is given, or a free one; return it, None for stdout."""
    from ldm.images import encode_image, save_image
    from ldm.images.picture import FILE_FORMATS
    from ldm.output import save_under_free_name
    from ldm.upscaling.metadata import kept_metadata

    output = arguments.output
    if output == STREAM:
        put(encode_image(large, "PNG", **kept_metadata(source, done, "PNG")))
        return None
    if output is not None and not is_folder(output):
        path = given_path(output, number, len(arguments.pictures))
        file_format = FILE_FORMATS[path.suffix.lower()]
        save_image(large, path, **kept_metadata(source, done, file_format))
        return path
    own = Path(STDIN_NAME if name == STREAM else name)
    folder = own.parent if output is None else Path(output)
    made = folder / f"{own.stem}-{scale:g}x.png"
    return save_under_free_name(large, made, **kept_metadata(source, done, "PNG"))


def given_path(output: str, number: int, count: int) -> Path:
    """Return ``--output`` as a name, numbered if there are several pictures."""
    path = Path(output)
    return path if count == 1 else path.with_stem(f"{path.stem}-{number}")


def main(argv: Sequence[str] | None = None, prog: str = "ldm upscale") -> int:
    """Entry point; returns the exit code. prog: what the user called it."""
    arguments = parser(prog).parse_args(argv)
    return run(lambda: upscale(arguments), arguments.debug, arguments.quiet)


if __name__ == "__main__":
    sys.exit(main())
