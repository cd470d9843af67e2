"""Build a folder of captioned icons in a style that the built-in model never saw.

    python -m tools.builtin_model.build_style --output data/style

A LoRA learns the style from it: `train/` has a picture of each icon, recoloured and on backgrounds
as the model's own data is, with a caption that ends in the style's word ("a red car, outlined");
`held_out/` has icons that the judge of `tools.builtin_model.evaluate_lora` is measured with. With
`--known 2400`, `known/` has so many pictures of single things that the model has learnt from, in
its own styles: class pictures, so that it keeps what it knows. Each has PNG files and
`metadata.jsonl`. The folder appears whole or not at all, and is the same on every machine for the
same arguments.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from tools.building import build_whole
from tools.builtin_model.build_icons import licences
from tools.builtin_model.icons import new_style, sources, variants


def build(args: argparse.Namespace, folder: Path) -> str:
    """Write the two splits and LICENSES.md into `folder`; returns a summary."""
    found = new_style.read(args.archives)
    train = (
        drawn
        for subject in found.train
        for drawn in new_style.pictures(subject, args.variants, args.size, args.seed, args.word)
    )
    counts = {
        "train": write(train, folder / "train"),
        "held_out": write(
            (variants.held_out(subject, args.size) for subject in found.held_out),
            folder / "held_out",
            f", {args.word}",
        ),
    }
    if args.known:
        counts["known"] = write_known(args.data, args.known, args.seed, folder / "known")
    packages = new_style.PACKAGES
    archives = {name: sources.fetch(package, args.archives) for name, package in packages.items()}
    (folder / "LICENSES.md").write_text(licences(archives, packages))
    parts = ", ".join(f"{count} pictures in {args.output / name}" for name, count in counts.items())
    return f'{parts}; the style\'s word is "{args.word}"'


def write(drawn: Iterable[tuple[np.ndarray, variants.Row]], folder: Path, ending: str = "") -> int:
    """Write pictures and metadata.jsonl, `ending` after every caption; returns how many."""
    folder.mkdir()
    rows = []
    for number, (picture, row) in enumerate(drawn):
        name = f"{number:04d}-{row.icon}.png"
        Image.fromarray(picture).save(folder / name)
        about = {"noun": row.noun, "colour": row.colour, "background": row.background}
        rows.append({"file_name": name, "text": row.caption + ending, **about})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def write_known(data: Path, count: int, seed: int, folder: Path) -> int:
    """Write pictures of single things that the built-in model has learnt from; returns how many.

    Raises BuildError for a data set that has fewer.
    """
    rows = [json.loads(line) for line in (data / "metadata.jsonl").open(encoding="utf-8")]
    single = [i for i, row in enumerate(rows) if (row["split"], row["kind"]) == ("train", "one")]
    if len(single) < count:
        raise sources.BuildError(f"{data} has {len(single)} pictures of single things, not {count}")
    images = np.load(data / "images.npy", mmap_mode="r")
    folder.mkdir()
    chosen = np.sort(np.random.default_rng(seed).choice(single, count, replace=False)).tolist()
    lines = []
    for number, row in enumerate(chosen):
        Image.fromarray(images[row]).save(folder / f"{number:04d}.png")
        lines.append(json.dumps({"file_name": f"{number:04d}.png", "text": rows[row]["caption"]}))
    (folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return count


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path("data/style"), help="new folder (data/style)")
    add("--size", type=int, default=128, help="pixels of a side (128)")
    add("--variants", type=int, default=1, help="pictures of an icon (1)")
    add("--seed", type=int, default=0)
    add("--word", default=new_style.WORD, help="that ends the captions (default: %(default)s)")
    add("--known", type=int, default=0, help="pictures of what the model knows, too (0)")
    add("--data", type=Path, default=Path("data/icons"), help="where these come from (data/icons)")
    add("--archives", type=Path, default=Path("data/npm"), help="folder of npm .tgz files")
    add("--force", action="store_true", help="replace an existing folder")
    args = parser.parse_args(argv)
    for name, least in (("size", 16), ("variants", 1), ("known", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    if not args.word.strip():
        parser.error("--word is empty; give the style a word")
    return args


def main(argv: list[str] | None = None) -> int:
    """Build; returns the exit code."""
    args = parse(argv)
    return build_whole(args.output, args.force, lambda folder: build(args, folder))


if __name__ == "__main__":
    sys.exit(main())
