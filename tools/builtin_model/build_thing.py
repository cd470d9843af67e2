"""Build a folder of eight captioned pictures of a thing that the built-in model does not know.

    python -m tools.builtin_model.build_thing --thing robot-snail --output data/thing

For DreamBooth, a LoRA or a textual inversion. Captions call it by a made-up word, which is no token
of CLIP's vocabulary: "a zwilbo on a yellow background" (`--placeholder` writes another one). Beside
the PNG files lie their captions (`.txt`) and `about.json`: the word, what the thing is like, and a
prompt for the pictures of its class that prior preservation draws. `tools.builtin_model.
evaluate_thing` says how well the thing was learnt. The folder appears whole or not at all.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tools.building import build_whole
from tools.builtin_model.icons.captions import article
from tools.builtin_model.icons.new_things import THINGS, NewThing, Pose, picture
from tools.builtin_model.icons.variants import background_tone
from tools.builtin_model.icons.wording import PLACES


@dataclass(frozen=True)
class Arrangement:
    """One of the pictures to learn from: its caption's words but for the thing's."""

    text: str  # "a {} on a yellow background"
    pose: Pose
    scale: float = 1.0
    background: str | None = None
    place: str | None = None


# Eight pictures: the fewest that show what varies and what does not.
ARRANGEMENTS = (
    Arrangement("a {}", Pose()),
    Arrangement("a {} on a yellow background", Pose(6, (1, 0), 0.5, 1.0, "open"), 0.9, "yellow"),
    Arrangement("a {}", Pose(-8, (-1, -0.5), -0.6, 0.94, "flat", True), 0.85),
    Arrangement("a small {} on the left", Pose(3, (0.5, 0.5), 0.0), 0.42, None, "left"),
    Arrangement("a {} on a blue background", Pose(-4, (0, -1), 1.0, 1.05, "smile", True), 0.9,
                "blue"),
    Arrangement("a small {} at the top right", Pose(-6, (-0.5, 0), 0.4, 1.0, "open", True), 0.45,
                None, "top right"),
    Arrangement("a {} on a pink background", Pose(10, (0, 0.8), -1.0, 0.96, "flat"), 0.88, "pink"),
    Arrangement("a big {}", Pose(-2, (0.8, -0.8), 0.2, 1.0, "open"), 0.99),
)  # fmt: skip


def arranged(thing: NewThing, arrangement: Arrangement, size: int) -> Image.Image:
    """Draw one of ARRANGEMENTS; the same at every call."""
    rng = np.random.default_rng(0)
    name = arrangement.background
    tone = background_tone(name, rng) if name else (255, 255, 255)
    at = PLACES[arrangement.place][0] if arrangement.place else (0.5, 0.5)
    inner = (0.06 + 0.88 * at[0], 0.06 + 0.88 * at[1])
    return Image.fromarray(picture(thing, arrangement.pose, size, arrangement.scale, tone, inner))


def build(args: argparse.Namespace, folder: Path) -> str:
    """Write pictures, captions and about.json into `folder`; returns a summary."""
    thing = THINGS[args.thing]
    word = args.placeholder or thing.word
    for number, arrangement in enumerate(ARRANGEMENTS):
        arranged(thing, arrangement, args.size).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(arrangement.text.format(word) + "\n")
    about = {
        "thing": args.thing,
        "word": word,
        "described": thing.described,
        "class": thing.noun,
        "class_prompt": f"{article(thing.noun)} {thing.noun}",
        "licence": "drawn by tools/builtin_model/icons/new_things.py, under this project's licence",
    }
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    return f'{len(ARRANGEMENTS)} pictures in {args.output}; the word is "{word}"'


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--thing", choices=THINGS, default=next(iter(THINGS)), help="(default: %(default)s)")
    add("--output", type=Path, default=Path("data/thing"), help="new folder (data/thing)")
    add("--placeholder", metavar="WORD", help="what captions call it (default: the thing's word)")
    add("--size", type=int, default=128, help="pixels of a side (128)")
    add("--force", action="store_true", help="replace an existing folder")
    args = parser.parse_args(argv)
    if args.size < 16:
        parser.error(f"--size is {args.size}; it must be at least 16")
    if args.placeholder is not None and not args.placeholder.strip():
        parser.error("--placeholder is empty; give a word")
    return args


def main(argv: list[str] | None = None) -> int:
    """Build; returns the exit code."""
    args = parse(argv)
    return build_whole(args.output, args.force, lambda folder: build(args, folder))


if __name__ == "__main__":
    sys.exit(main())
