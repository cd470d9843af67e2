"""``ldm-info``: what a model file or folder is."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm import __version__
from ldm.checkpoints.describe import describe
from ldm.cli.common import EXIT_CODES, Parser, run
from ldm.errors import CheckpointError

BLOCK = 1 << 20


def parser() -> Parser:
    """Build the parser of the command's arguments."""
    parser = Parser(
        prog="ldm-info",
        description="Say what a model file or folder is: family, parts, number format, prediction "
        "type; what a LoRA was trained for. Only headers are read.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("path", nargs="+", type=Path, help="a weight file or a model folder")
    parser.add_argument(
        "--hash", action="store_true", help="also the SHA-256 of each file, which reads all of it"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"ldm {__version__}")
    return parser


def info(arguments: argparse.Namespace) -> None:
    """Print a table for each path."""
    for i, path in enumerate(arguments.path):
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; give a model file or folder")
        rows = describe(path)
        if arguments.hash and path.is_file():
            rows.append(("sha256", sha256(path)))
        width = max(len(name) for name, _ in rows)
        print("\n" * (i > 0) + "\n".join(f"{name:{width}}  {value}" for name, value in rows))


def sha256(path: Path) -> str:
    """Compute the hash that model sites list; its first ten digits are A1111's model hash."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: info(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
