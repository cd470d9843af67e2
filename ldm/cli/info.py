"""``ldm info``: what a picture, a model or the built-in model is."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm import __version__
from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.describe import describe
from ldm.checkpoints.describe_control import describe_reader_folder, find_reader
from ldm.checkpoints.model_folder import find_model
from ldm.checkpoints.notes import Rows
from ldm.cli.common import EXIT_CODES, FAILED, run
from ldm.cli.parsing import Parser
from ldm.cli.printed import fail, put_text, visible
from ldm.cli.streams import MOST_BYTES
from ldm.config.files import read_limited
from ldm.errors import ArgumentError, CheckpointError, LDMError

BLOCK = 1 << 20
MOST = 20  # models of a folder to name
WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".bin", ".gguf")
TEXTS = (".txt", ".jsonl")


def parser(prog: str = "ldm-info") -> Parser:
    """Build the parser of the command's arguments."""
    parser = Parser(
        prog=prog,
        description="Say what a file or folder is. Of a picture: its settings, and the command "
        "that draws it again. Of a model: family, parts, number format, prediction type; what a "
        "LoRA was trained for (only headers are read). Without a path: what the built-in model can "
        "draw.",
        epilog=EXIT_CODES,
    )
    parser.add_argument(
        "path",
        nargs="*",
        metavar="PATH",
        help="a picture, a weight file, a model folder, a name in --model-dir, a file of prompts "
        "or an ldm.toml",
    )
    parser.add_argument(
        "--words",
        nargs="?",
        const="",
        metavar="TEXT",
        help="list the things that the built-in model can draw, those with TEXT in their names",
    )
    parser.add_argument(
        "--hash", action="store_true", help="also the SHA-256 of each file, which reads all of it"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look for NaN and infinities in all weights, which reads all of the files",
    )
    parser.add_argument("--model-dir", type=Path, metavar="DIR", help="where models' names are")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"ldm {__version__}")
    return parser


def info(arguments: argparse.Namespace) -> None:
    """Print a table for each path, or about the built-in model."""
    if arguments.words is not None:
        list_words(arguments.words)
    elif not arguments.path:
        from ldm.cli.vocabulary import summary

        print_rows([*describe(asset_path("weights")), *summary()])
    failed = 0
    for i, name in enumerate(arguments.path):
        try:
            path = find_path(name, arguments.model_dir)
            rows = rows_of(path, arguments.hash)
            if arguments.check:
                rows.append(("values", check_values(path)))
        except LDMError as error:
            if len(arguments.path) == 1:
                raise
            failed += 1
            fail(str(error), FAILED)
        else:
            put_text("\n" * (i > 0))
            print_rows(rows)
    if failed:
        raise LDMError(f"{failed} of {len(arguments.path)} could not be read")


def rows_of(path: Path, with_hash: bool) -> Rows:
    """Describe a path, with its SHA-256 if that is asked for and it is a file."""
    rows = describe_any(path)
    if with_hash and path.is_file():
        rows.append(("sha256", sha256(path)))
    return rows


def print_rows(rows: Rows) -> None:
    """Print a table of two columns."""
    rows = [(visible(name), value) for name, value in rows]
    width = max(len(name) for name, _ in rows)
    put_text("".join(f"{name:{width}}  {visible(value)}\n" for name, value in rows))


def list_words(text: str) -> None:
    """Print the things that the built-in model knows. Raises LDMError if there is none."""
    from ldm.cli.vocabulary import nearest, search

    found = search(text)
    if not found:
        near = nearest([text])
        hint = f"; near are {', '.join(near)}" if near else "; ldm info --words lists all"
        raise LDMError(f"the built-in model knows no {text!r}{hint}")
    put_text("".join(f"{visible(row)}\n" for row in found))


def find_path(name: str, folder: Path | None) -> Path:
    """Find a path, or the model of that name. Raises CheckpointError if there is neither."""
    if not Path(name).exists():
        if folder is None:
            from ldm.cli.configuration import default_model_dir

            folder = default_model_dir()
        name = find_model(name, folder) or name
    path = Path(name)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a picture, a model file or a folder")
    return path


def describe_any(path: Path) -> Rows:
    """Describe a file or folder of any kind, row by row."""
    if path.is_dir() and (reader := find_reader(path)):
        return describe_reader_folder(path, reader)
    if path.is_dir():
        return describe(path) if (path / "model_index.json").exists() else describe_others(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is no ordinary file; give a picture or a model file")
    from ldm.cli.picture_info import describe_picture, is_picture

    if is_picture(path):
        return describe_picture(path)
    if path.suffix.lower() in TEXTS:
        content = read_limited(path, MOST_BYTES, what="file of prompts")
        lines = [line for line in content.splitlines() if line.strip()]
        return [
            ("file of prompts", f"{path}, {len(lines)} lines"),
            ("draw", f"ldm generate --prompts {shlex.quote(str(path))} -o out/"),
        ]
    if path.suffix.lower() == ".toml":
        return describe_settings(path)
    return describe(path)


def describe_settings(path: Path) -> Rows:
    """Describe a file of the user's defaults. Raises ArgumentError for any other."""
    from ldm.cli.configuration import NAME, read_file, shown

    if path.name != NAME:
        raise ArgumentError(
            f"{path} is no {NAME}; what a training config does is shown by: ldm train --config "
            f"{shlex.quote(str(path))} --dry-run"
        )
    rows = [(item.name.replace("_", "-"), shown(item.value)) for item in read_file(path)]
    return [("defaults", str(path)), *rows]


def describe_others(folder: Path) -> Rows:
    """Describe a folder that is no model. Raises CheckpointError if nothing known is in it."""
    from ldm.checkpoints.model_folder import models
    from ldm.images.files import FILE_FORMATS

    pictures = sum(path.suffix.lower() in FILE_FORMATS for path in folder.iterdir())
    found = [path.relative_to(folder).as_posix() for path in models(folder)]
    if not pictures and not found:
        raise CheckpointError(
            f"{folder} has no model_index.json, no pictures and no models; give another folder"
        )
    rows: Rows = [("folder", str(folder))]
    if pictures:
        rows.append(("pictures", str(pictures)))
    if found:
        rows.append(("models", ", ".join(found[:MOST]) + ", …" * (len(found) > MOST)))
    return rows


def check_values(path: Path) -> str:
    """Read all values of a file or folder of weights; say how many tensors have finite ones.

    Raises CheckpointError, naming the first tensor, for NaN and infinities.
    """
    from ldm.checkpoints.deferred import dense  # here: only this needs PyTorch
    from ldm.checkpoints.plain import check_finite
    from ldm.checkpoints.tensors import all_tensors, read_content

    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.glob("**/*") if file.suffix in WEIGHTS)
    count = 0
    for file in files:
        for name, stored in all_tensors(read_content(file)[0]):
            value = dense(stored)
            if value.is_floating_point():
                check_finite(file, name, value)
                count += 1
    return f"finite, in all of {count:,} tensors"


def sha256(path: Path) -> str:
    """Compute the hash that model sites list; its first ten digits are A1111's model hash."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None, prog: str = "ldm-info") -> int:
    """Entry point; returns the exit code. prog: what the user called it."""
    arguments = parser(prog).parse_args(argv)
    return run(lambda: info(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
