"""Make the folder that a machine without network needs to train the built-in model.

    python -m tools.builtin_model.pack --output pack

The folder holds the code, the icon archives (only the icons that are used, compressed anew), the
VAE, encoders, tokenizer and scheduler of `weights/`, and wheels of what a plain PyTorch image
lacks. There, `sh run.sh --minutes 9` trains. It appears whole or not at all.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

from ldm.cli.common import EXIT_CODES
from ldm.cli.parsing import Parser
from tools.building import build_whole
from tools.builtin_model.compose import read_vocabulary
from tools.builtin_model.icons.sources import (
    EMOJIBASE,
    MORE_SETS,
    SETS,
    BuildError,
    Package,
    fetch,
)
from tools.packages import fetch_wheel, read_file

ROOT = Path(__file__).resolve().parents[2]
CODE = ("ldm", "tools", "configs", "pyproject.toml", "LICENSE")
WEIGHTS = ("vae", "text_encoder", "tokenizer", "scheduler", "image_encoder", "model_index.json")
WHEELS = {"resvg-py": "0.5.0"}
ICONS = "icons.json"
SET_MEMBERS, EMOJIBASE_MEMBERS = (ICONS, "chars.json"), ("en/data.json", "meta/groups.json")
ALL_SETS = SETS | MORE_SETS
LIMIT = 60 * 10**6  # bytes
RUN = """#!/bin/sh
# Train where there is no network: sh run.sh --minutes 9 --output OUTPUT
set -e
cd "$(dirname "$0")"
python3 -m pip install --quiet --no-index --no-deps --upgrade --target /tmp/ldm-wheels wheels/*.whl
PYTHONPATH=/tmp/ldm-wheels:. exec python3 -m tools.builtin_model.train --archives archives "$@"
"""


def used_icons(archives: Path) -> dict[str, set[str]]:
    """Return the names of the icons that the trainer draws or holds out, by their set."""
    vocabulary = read_vocabulary(archives)
    used: dict[str, set[str]] = defaultdict(set)
    for subject in [*vocabulary.subjects, *vocabulary.held_out]:
        used[subject.icon.set].add(subject.icon.name)
    return used


def only(icons: set[str], content: bytes) -> bytes:
    """Leave out the drawings of a set's `icons.json` that are not among `icons`, and aliases."""
    drawings = json.loads(content)
    drawings.pop("aliases", None)
    drawings["icons"] = {k: v for k, v in drawings["icons"].items() if k in icons}
    return json.dumps(drawings, separators=(",", ":")).encode()


def repack(package: Package, archives: Path, folder: Path, icons: set[str]) -> None:
    """Write those files of an archive that the trainer reads into a smaller one.

    icons: of a set, the names of those to keep.

    Raises BuildError where the archive lacks one.
    """
    source = fetch(package, archives)
    target = (folder / package.archive).with_suffix(".tar.xz")
    members = EMOJIBASE_MEMBERS if package == EMOJIBASE else SET_MEMBERS
    with tarfile.open(source) as old, tarfile.open(target, "w:xz", preset=6) as new:
        for member in members:
            try:
                content = read_file(old, f"package/{member}")
            except KeyError:
                raise BuildError(f"{source} has no {member}; delete it and retry") from None
            if member == ICONS:
                content = only(icons, content)
            info = tarfile.TarInfo(f"package/{member}")  # without owner or time: always alike
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))


def fill(folder: Path, archives: Path) -> str:
    """Write everything into `folder`, which exists; returns what to print."""
    ignored = shutil.ignore_patterns("__pycache__", "*.webp", "*.png")
    (folder / "weights").mkdir()
    for name in (*CODE, *(f"weights/{part}" for part in WEIGHTS)):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "archives").mkdir()
    used = used_icons(archives)
    for name, package in (*ALL_SETS.items(), ("", EMOJIBASE)):
        repack(package, archives, folder / "archives", used[name])
    (folder / "wheels").mkdir()
    for name, version in WHEELS.items():
        shutil.copy(fetch_wheel(name, version, archives), folder / "wheels")
    (folder / "run.sh").write_text(RUN)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise BuildError(f"the pack has {size / 1e6:.1f} MB; it must have at most {LIMIT // 10**6}")
    return f"{size / 1e6:.1f} MB"


def main(argv: list[str] | None = None) -> int:
    """Make the folder; returns the exit code."""
    parser = Parser(
        prog="python -m tools.builtin_model.pack",
        description=__doc__.splitlines()[0],
        epilog=EXIT_CODES,
    )
    parser.add_argument("--output", type=Path, default=Path("pack"), help="new folder")
    parser.add_argument(
        "--archives", type=Path, default=Path("data/npm"), help="the icon sets' packages"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    arguments = parser.parse_args(argv)
    return build_whole(
        arguments.output, arguments.force, lambda folder: fill(folder, arguments.archives)
    )


if __name__ == "__main__":
    sys.exit(main())
