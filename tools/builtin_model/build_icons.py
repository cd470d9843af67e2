"""Build a captioned data set of pictures from openly licensed icon sets.

    python -m tools.builtin_model.build_icons --output data/icons

The folder has `images.npy` (uint8, (N, size, size, 3), RGB), `metadata.jsonl` (one row for each
picture), `config.json` and `LICENSES.md`. It appears whole or not at all, and is the same on
every machine for the same arguments.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tools.building import build_whole
from tools.builtin_model import compose
from tools.builtin_model.icons import nouns, scenes, sources, split, variants

# Pictures of an icon relative to --variants: of common things, other everyday things, the rest.
COMMON, EVERYDAY, OTHER = 1.0, 0.6, 0.2
# How often training draws a picture of each: half of all are of common things.
WEIGHTS = {COMMON: 1.0, EVERYDAY: 0.6, OTHER: 0.3}
# … and of each kind: things in company are small, and their shapes are learnt last. Half of the
# pictures are of two things.
OF_KIND = {"one": 1.0, "placed": 1.0, "several": 3.0, "two": 5.0}
TYPICAL_ICONS = 5  # a noun drawn by every set has five; one with more gets fewer of each


@dataclasses.dataclass(frozen=True)
class Task:
    """The pictures of one icon, which go to the rows from `start` on."""

    subject: nouns.Subject
    start: int
    count: int
    weight: float  # how often training draws each
    held_out: bool


def share(subject: nouns.Subject) -> float:
    """Which of the three kinds a subject is."""
    if subject.noun is None:
        return OTHER
    return COMMON if subject.noun.common else EVERYDAY


def counts(subjects: list[nouns.Subject], per_icon: int) -> list[int]:
    """Pictures for each subject, so that all nouns of one kind have about as many."""
    icons_of = Counter(s.noun.noun for s in subjects if s.noun)
    result = []
    for subject in subjects:
        factor = share(subject)
        if subject.noun is not None:
            factor *= min(max(TYPICAL_ICONS / icons_of[subject.noun.noun], 0.4), 1.5)
        result.append(max(round(per_icon * factor), 1))
    return result


@dataclasses.dataclass(frozen=True)
class Plan:
    """The tasks in the order of rows: all of training, then the held-out icons, one row each."""

    tasks: list[Task]
    stock: scenes.Stock

    @property
    def total(self) -> int:
        """The number of pictures."""
        return self.tasks[-1].start + self.tasks[-1].count


def plan_everyday(args: argparse.Namespace) -> Plan:
    """Plan pictures of everyday things, and some of others that have a name."""
    archives = {name: sources.fetch(p, args.archives) for name, p in sources.SETS.items()}
    emojibase = sources.fetch(sources.EMOJIBASE, args.archives)
    subjects = nouns.read_subjects(archives, emojibase)
    subjects = [dataclasses.replace(s, styled=compose.styled(s, in_colour=True)) for s in subjects]
    out = split.held_out_icons(subjects, args.held_out_seed)
    marked = [(s, (s.icon.set, s.icon.name) in out) for s in subjects]
    train = [s for s, is_out in marked if not is_out]
    todo = zip(train, counts(train, args.variants), map(weight_of, train), strict=True)
    return Plan(arrange(todo, [s for s, is_out in marked if is_out]), scenes.Stock(train))


def plan_whole(args: argparse.Namespace) -> Plan:
    """Plan pictures of all that the sets show, silhouettes too, as often as `compose` draws it."""
    found = compose.read_vocabulary(args.archives, args.held_out_seed)
    wanted = compose.frequencies(found.subjects) * args.variants * TYPICAL_ICONS / compose.COMMON
    made = np.rint(wanted).clip(1).astype(int)
    todo = zip(found.subjects, made.tolist(), (wanted / made).tolist(), strict=True)
    return Plan(arrange(todo, found.held_out), found.stock)


def weight_of(subject: nouns.Subject) -> float:
    """How often training draws a picture of it."""
    return WEIGHTS[share(subject)] * compose.DRAWN.get(subject.icon.set, 1.0)


def arrange(
    train: Iterable[tuple[nouns.Subject, int, float]], held_out: Iterable[nouns.Subject]
) -> list[Task]:
    """Give subjects, with their numbers of pictures and weights, their rows."""
    tasks, start = [], 0
    todo = [(*row, False) for row in train] + [(s, 1, weight_of(s), True) for s in held_out]
    for subject, count, weight, is_out in todo:
        tasks.append(Task(subject, start, count, weight, is_out))
        start += count
    return tasks


# What is drawn, by --vocabulary: its plan, and the sets it is from.
VOCABULARIES = {
    "everyday": (plan_everyday, sources.SETS),
    "whole": (plan_whole, sources.SETS | sources.MORE_SETS),
}


def draw(task: Task, images: Path, size: int, seed: int, stock: scenes.Stock) -> list[variants.Row]:
    """Write the pictures of one task into their place in `images`; returns their rows."""
    if task.held_out:
        picture, row = variants.held_out(task.subject, size)
        pictures, rows = picture[None], [row]
    else:
        pictures, rows = scenes.pictures(task.subject, task.count, size, seed, stock)
    array = np.load(images, mmap_mode="r+")
    array[task.start : task.start + task.count] = pictures
    return rows


_shared: tuple[Path, int, int, scenes.Stock]  # what a process of the pool is given once


def _begin(*shared: Any) -> None:
    global _shared
    _shared = shared


def _draw(task: Task) -> list[variants.Row]:
    return draw(task, *_shared)


def licences(archives: dict[str, Path], packages: dict[str, sources.Package]) -> str:
    """Text of LICENSES.md: what each set is called, whose it is and under which licence."""
    lines = ["# Sources of the pictures", ""]
    for name, path in archives.items():
        about, package = sources.read_licence(path), packages[name]
        lines += [
            f"## {name}",
            f"- Package: `{package.name}@{package.version}` (npm)",
            f"- Work: {about['title']} by {about['author']}, {about['home']}",
            f"- Licence: {about['licence']}, {about['licence_url']}",
            "- Changes: drawn as pixels, scaled, moved, mirrored, recoloured, put on backgrounds.",
            "",
        ]
    lines += [
        f"Labels: `{sources.EMOJIBASE.name}@{sources.EMOJIBASE.version}` by Miles Johnson, MIT.",
        "",
    ]
    return "\n".join(lines)


def build(args: argparse.Namespace, folder: Path) -> Counter:
    """Write the whole data set into `folder`, which exists; returns counts by set and split."""
    planned, packages = VOCABULARIES[args.vocabulary]
    archives = {name: sources.fetch(p, args.archives) for name, p in packages.items()}
    plan = planned(args)
    tasks, total = plan.tasks, plan.total
    images = folder / "images.npy"
    shape = (total, args.size, args.size, 3)
    np.lib.format.open_memmap(images, "w+", np.uint8, shape).flush()

    tally, kinds = Counter(), Counter()
    started = time.monotonic()
    shared = (images, args.size, args.seed, plan.stock)
    with (
        (folder / "metadata.jsonl").open("w") as metadata,
        get_context("spawn").Pool(args.processes, _begin, shared) as pool,
    ):
        done = 0
        for task, rows in zip(tasks, pool.imap(_draw, tasks, chunksize=8), strict=True):
            for row in rows:
                weight = round(task.weight * OF_KIND[row.kind], 3)
                line = {**dataclasses.asdict(row), "weight": weight}
                metadata.write(json.dumps(line) + "\n")
                tally[row.set, row.split] += 1
                kinds[row.kind] += 1
            done += len(rows)
            if sys.stderr.isatty():
                seconds = time.monotonic() - started
                print(f"\r{done}/{total} pictures, {seconds:.0f} s", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    (folder / "LICENSES.md").write_text(licences(archives, packages))
    config = {
        "size": args.size,
        "variants": args.variants,
        "seed": args.seed,
        "held_out_seed": args.held_out_seed,
        "vocabulary": args.vocabulary,
        "packages": {p.name: p.version for p in (*packages.values(), sources.EMOJIBASE)},
        "icons": len(tasks),
        "images": total,
        "counts": {f"{name}/{part}": n for (name, part), n in sorted(tally.items())},
        "kinds": dict(kinds),
        "held_out_pairs": sorted([colour, noun] for noun, colour in split.HELD_OUT_PAIRS),
        "held_out_together": sorted(map(sorted, split.HELD_OUT_TOGETHER)),
        "eval_objects": split.read_eval_objects(),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tally


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/icons"), help="new folder")
    parser.add_argument(
        "--vocabulary",
        choices=VOCABULARIES,
        default="everyday",
        help="everyday: what people ask for first, by common names; whole: every name that a "
        "picture can show, flags and silhouettes too (everyday)",
    )
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (128)")
    parser.add_argument(
        "--variants", type=int, default=40, help="pictures of an icon of a common thing (40)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    parser.add_argument(
        "--held-out-seed",
        type=int,
        metavar="SEED",
        help="of which icons are held out (the value of --seed); other pictures of the same icons: "
        "--seed 1 --held-out-seed 0",
    )
    parser.add_argument(
        "--archives", type=Path, default=Path("data/npm"), help="folder of npm .tgz files"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    args = parser.parse_args(argv)
    if args.held_out_seed is None:
        args.held_out_seed = args.seed
    least_of = {"size": 16, "variants": 1, "processes": 1, "seed": 0, "held_out_seed": 0}
    for name, least in least_of.items():
        if getattr(args, name) < least:
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} is {getattr(args, name)}; it must be at least {least}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Build; returns the exit code."""
    args = parse(argv)

    def fill(folder: Path) -> str:
        tally = build(args, folder)
        lines = [f"{name:18s} {part:9s} {n:6d}" for (name, part), n in sorted(tally.items())]
        return "\n".join([*lines, f"{sum(tally.values())} pictures in {args.output}"])

    return build_whole(args.output, args.force, fill)


if __name__ == "__main__":
    sys.exit(main())
