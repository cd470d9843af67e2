"""Measure the names that no classifier knows, by the icons that the pictures are most like.

    python -m tools.builtin_model.evaluate_vocabulary --judge runs/evaluation --output runs/names

The classifier of `tools.builtin_model.evaluate` knows everyday things; flags, signs, people,
silhouettes and what few sets draw have too few icons to train one. So a picture of each of these
names is compared with all icons of all sets, as they are on white, in the classifier's features:
it is right if its most similar icon has the name that was asked for. The same of real icons, each
among those of the other sets, stands beside it: of names with more than one icon, and those of
other sets look different, so a model that has learnt an icon can have more. Writes `report.json`
and a sheet of all names, `names.webp`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.cli.common import check_counts, run
from ldm.cli.parsing import Parser
from ldm.images import image_grid, save_image
from ldm.pipeline import Pipeline
from tools.builtin_model import compose
from tools.builtin_model.evaluate import log, settings
from tools.builtin_model.evaluation import classifier, sheet, sheets
from tools.builtin_model.evaluation.classifier import Classifier
from tools.builtin_model.evaluation.drawing import draw
from tools.builtin_model.evaluation.intervals import of_verdicts
from tools.builtin_model.evaluation.options import (
    add_drawing,
    add_judge,
    check_judge,
    shared_parser,
)
from tools.builtin_model.evaluation.prompts import Prompt, PromptThing
from tools.builtin_model.icons import variants
from tools.builtin_model.icons.captions import MORE_STYLES
from tools.builtin_model.icons.nouns import Subject

SIDE = 96  # pixels of the icons
BLOCK = 256  # pictures looked at together
GUESSES = 5
COLUMNS = 36  # of the sheet
KINDS = ("things", "people", "signs", "flags", "silhouettes", "everyday")


def kind_of(icons: Sequence[Subject]) -> str:
    """Say which of KINDS a name belongs to, by its icons."""
    first = icons[0]
    if first.noun is not None:
        return "everyday"
    if all(icon.icon.set in MORE_STYLES for icon in icons):
        return "silhouettes"
    if first.subgroup.endswith("flag"):
        return "flags"
    if first.subgroup.startswith(("person", "family")):
        return "people"
    return "signs" if first.keeps_colours or first.subgroup in compose.RARE else "things"


def by_name(subjects: Sequence[Subject], everyday: bool = False) -> dict[str, list[Subject]]:
    """Group the icons of what is no everyday thing, or of those that are, by their names."""
    found: dict[str, list[Subject]] = defaultdict(list)
    for subject in subjects:
        if (subject.noun is not None) == everyday:
            found[compose.name(subject)].append(subject)
    return dict(found)


def asked(names: dict[str, list[Subject]]) -> list[Prompt]:
    """Ask for each name as a plain caption does, in a shuffled order: the first are a sample."""
    rows = [
        Prompt(variants.plain_caption(icons[0]), "names", (PromptThing(name),))
        for name, icons in names.items()
    ]
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def features(model: Classifier, pictures: Sequence[np.ndarray]) -> Tensor:
    """Return what the classifier sees, of length 1: uint8 (H, W, 3) each → float32 (N, D)."""
    parts = [
        model.features(np.stack(pictures[start : start + BLOCK]))
        for start in range(0, len(pictures), BLOCK)
    ]
    return F.normalize(torch.from_numpy(np.concatenate(parts)), dim=1)


def guesses(similar: Tensor, names: Sequence[str]) -> list[list[str]]:
    """Return at most GUESSES names, of the most similar icons, best first: (N, icons) → N lists.

    similar: how much each picture is, in [−1, 1]; −∞ where the icon may not be guessed.
    """
    found = []
    for row in similar:
        order: dict[str, None] = {}
        for index in row.argsort(descending=True).tolist():
            if len(order) == GUESSES or row[index] == -torch.inf:
                break
            order.setdefault(names[index])
        found.append(list(order))
    return found


def real_guesses(
    seen: Tensor, subjects: Sequence[Subject], names: Sequence[str], chosen: Collection[str]
) -> list[tuple[str, list[str]]]:
    """Guess the icons of some names, each by those of other sets, which have its name too.

    Returns names and guesses.
    """
    sets = np.array([subject.icon.set for subject in subjects])
    sets_of: dict[str, set[str]] = defaultdict(set)
    for name, icon_set in zip(names, sets, strict=True):
        sets_of[name].add(icon_set)
    rows = [i for i, name in enumerate(names) if name in chosen and len(sets_of[name]) > 1]
    found: list[tuple[str, list[str]]] = []
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        similar = seen[part] @ seen.T
        similar[torch.from_numpy(sets[part][:, None] == sets[None])] = -torch.inf
        found += zip([names[i] for i in part], guesses(similar, names), strict=True)
    return found


def figures(guessed: Sequence[tuple[str, list[str]]], kinds: dict[str, str]) -> dict[str, Any]:
    """Return the shares that are right at once and within GUESSES, in all and of each kind."""
    result: dict[str, Any] = {}
    for kind in ("all", *KINDS):
        chosen = [(name, five) for name, five in guessed if kind in ("all", kinds[name])]
        first = [five[0] == name for name, five in chosen]
        within = [name in five for name, five in chosen]
        if chosen:
            result[kind] = {
                "pictures": len(chosen),
                "right": sum(first) / len(first),
                "interval": of_verdicts(first),
                f"within {GUESSES}": sum(within) / len(within),
            }
    return result


def names_sheet(prompts: Sequence[Prompt], pictures: Sequence[Image.Image]) -> Image.Image:
    """Put every picture over its name, in alphabetical order."""
    pairs = sorted(zip((p.noun for p in prompts), pictures, strict=True), key=lambda pair: pair[0])
    return image_grid([sheet.tile(picture, name, 80) for name, picture in pairs], COLUMNS)


def evaluate(arguments: argparse.Namespace) -> None:
    """Draw, compare and write; raises LDMError for whatever cannot work."""
    check_counts(arguments, "prompts", "batch_size", "num_inference_steps", "threads")
    check_judge(arguments.judge)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, _ = classifier.load(arguments.judge)
    subjects = compose.read_vocabulary(arguments.archives).subjects
    names = by_name(subjects, arguments.everyday)
    kinds = {name: kind_of(icons) for name, icons in names.items()}
    log(f"looking at {len(subjects)} icons")
    seen = features(model, [variants.held_out(subject, SIDE)[0] for subject in subjects])
    called = [compose.name(subject) for subject in subjects]

    pipe = Pipeline.from_pretrained(arguments.model, device="cpu", dtype=arguments.dtype)
    if arguments.lora:
        pipe.load_lora_weights(arguments.lora)
    wanted = asked(names)[: arguments.prompts]
    seeds = [arguments.seed + i for i in range(len(wanted))]
    pictures, seconds = draw(pipe, wanted, seeds, arguments, log)
    found = guesses(features(model, [np.asarray(p) for p in pictures]) @ seen.T, called)
    drawn = [(prompt.noun, five) for prompt, five in zip(wanted, found, strict=True)]
    report = {
        "settings": settings(pipe, arguments),
        "seconds_per_picture": seconds,
        "drawn": figures(drawn, kinds),
        "real": figures(real_guesses(seen, subjects, called, names), kinds),
        "pictures": [
            {"seed": seed, "text": prompt.text, "name": prompt.noun, "guesses": five}
            for seed, prompt, five in zip(seeds, wanted, found, strict=True)
        ],
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    whole = names_sheet(wanted, pictures)
    save_image(whole, arguments.output / "names.webp", None, True, quality=sheets.quality(whole))
    print(json.dumps({key: report[key] for key in ("drawn", "real")}, indent=1))


def parser() -> Parser:
    """Build the parser of the command line."""
    parser = shared_parser(__doc__.splitlines()[0])
    add_drawing(parser)
    add_judge(parser)
    add = parser.add_argument
    add(
        "--everyday",
        action="store_true",
        help="ask for the names that the classifier knows instead, for comparison",
    )
    add("--lora", metavar="PATH", help="a LoRA to draw with: a file or the folder of a run")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    arguments = parser().parse_args(argv)
    return run(lambda: evaluate(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
