"""Measure whether a new thing was learnt from a few pictures: by a LoRA, a word, or all weights.

    python -m tools.builtin_model.evaluate_thing --thing robot-snail --lora thing.safetensors \\
        --data data/icons --judge runs/evaluation --output runs/thing
    … --textual-inversion word.safetensors
    … --model runs/dreambooth

The thing is one of `tools.builtin_model.build_thing`. Forty prompts with its word (as it is, on
colours, small at places, in frames) are drawn, and a network that knows it from all other icons and
from near misses, trained in minutes and kept in `--judge`, says in how many it is. The control is
the base alone, by the same prompts and seeds, with the word, and with a description in its place.
How well the judge does on pictures that it never saw is printed, too. Writes `report.json` and a
contact sheet of each.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.cli.common import check_counts, run
from ldm.cli.parsing import Parser
from ldm.errors import ArgumentError
from ldm.images import save_image
from ldm.pipeline import Pipeline
from tools.builtin_model.evaluate import log, read_data
from tools.builtin_model.evaluation import thing_judge
from tools.builtin_model.evaluation.classifier import Classifier, Opinion
from tools.builtin_model.evaluation.colours import background_colour
from tools.builtin_model.evaluation.drawing import draw
from tools.builtin_model.evaluation.judge import Judged, Seen
from tools.builtin_model.evaluation.options import add_drawing, add_judge, shared_parser
from tools.builtin_model.evaluation.prompts import PLACES, Prompt, PromptThing
from tools.builtin_model.evaluation.sheet import contact_sheet
from tools.builtin_model.evaluation.things import find_things, together
from tools.builtin_model.icons.captions import article
from tools.builtin_model.icons.colour import TONES
from tools.builtin_model.icons.new_things import THINGS, NewThing
from tools.builtin_model.icons.wording import FRAMES

ALONE, ON_COLOURS, AT_PLACES = 8, 2, 2  # prompts of the thing alone; of each colour, each place
COUNT = 40


def asked(thing: NewThing, name: str, word: str) -> list[Prompt]:
    """Return COUNT prompts in which `word` (without an article) stands for the thing."""
    things = (PromptThing(name),)
    colours = [colour for colour in TONES if colour not in (*thing.own, "white")]
    small = f"small {word}"
    rows = [Prompt(_a(word), "single", things)] * ALONE
    for colour in colours * ON_COLOURS:
        text = f"{_a(word)} on {_a(colour)} background"
        rows.append(Prompt(text, "single", things, background=colour))
    for place, where in [*PLACES.items()] * AT_PLACES:
        rows.append(Prompt(f"{_a(small)} {where}", "single", things, place=place))
    for frame in FRAMES:
        rows.append(Prompt(frame.format(_a(word)), "single", things))
    for colour, (place, where) in zip(colours, PLACES.items(), strict=False):
        text = f"{_a(small)} {where} on {_a(colour)} background"
        rows.append(Prompt(text, "single", things, background=colour, place=place))
    return rows[:COUNT]


def _a(words: str) -> str:
    return f"{article(words)} {words}"


def judge(model: Classifier, prompts: list[Prompt], pictures: list[Image.Image]) -> list[Judged]:
    """Judge each picture: what it shows, on which background, where."""
    arrays = [np.asarray(picture) for picture in pictures]
    judged = []
    names = thing_judge.seen(model, arrays)
    for prompt, array, name in zip(prompts, arrays, names, strict=True):
        whole = together(find_things(array))
        box: dict[str, Any] = {"centre": whole.centre, "length": whole.length} if whole else {}
        # No colour is asked of the thing itself, and none measured.
        seen = Seen(Opinion((name,), name, "any"), None)
        judged.append(Judged(prompt, seen, background=background_colour(array), **box))
    return judged


def share(verdicts: list[bool]) -> float | None:
    """Return the share that is true; None of nothing."""
    return round(sum(verdicts) / len(verdicts), 4) if verdicts else None


def figures(judged: list[Judged]) -> dict[str, float | None]:
    """Return the shares of pictures that show the thing, and what else was asked for."""
    return {
        "recognised": share([item.recognised for item in judged]),
        "background as asked": share([j.on_background for j in judged if j.prompt.background]),
        "place as asked": share([j.in_place for j in judged if j.prompt.place]),
    }


def load(arguments: argparse.Namespace, word: str) -> Pipeline:
    """Load what was trained: the model, the LoRA and the word that are given."""
    pipe = Pipeline.from_pretrained(arguments.model, device="cpu", dtype=arguments.dtype)
    if arguments.textual_inversion:
        pipe.load_textual_inversion(arguments.textual_inversion, token=word)
    if arguments.lora:
        lora = pipe.load_lora_weights(arguments.lora, scale=arguments.lora_scale)
        log(lora.summary)
    return pipe


def evaluate(arguments: argparse.Namespace) -> None:
    """Draw, judge and write; raises LDMError for whatever cannot work."""
    check_counts(arguments, "prompts", "batch_size", "num_inference_steps", "threads")
    if not (arguments.lora or arguments.textual_inversion or arguments.model):
        raise ArgumentError("nothing to measure; give --lora, --textual-inversion or --model")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name, thing = arguments.thing, THINGS[arguments.thing]
    word = arguments.word or thing.word
    data = read_data(arguments.data)
    tuned = load(arguments, word)
    base = Pipeline.from_pretrained(arguments.base, device="cpu", dtype=arguments.dtype)
    model = thing_judge.trained(data, arguments.judge, log)
    judges = thing_judge.accuracy(model, data)
    log(str(judges))
    cases = {
        "tuned": (tuned, word),
        "base, with the word": (base, word),
        "base, with a description": (base, thing.described),
    }
    report: dict[str, Any] = {"thing": name, "word": word, "judge": judges}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for case, (pipe, called) in cases.items():
        wanted = asked(thing, name, called)[: arguments.prompts]
        log(f"{case}: {len(wanted)} pictures")
        seeds = [arguments.seed + i for i in range(len(wanted))]
        pictures, _ = draw(pipe, wanted, seeds, arguments, log)
        judged = judge(model, wanted, pictures)
        report[case] = figures(judged)
        path = arguments.output / f"contact-{case.split()[-1]}.png"
        save_image(contact_sheet(judged, pictures, 10), path, None, True)
    text = json.dumps(report, indent=2)
    (arguments.output / "report.json").write_text(text + "\n")
    print(text)


def parser() -> Parser:
    """Build the parser of the command line."""
    parser = shared_parser(__doc__.splitlines()[0])
    add_drawing(parser)
    add_judge(parser)
    add = parser.add_argument
    add("--thing", choices=THINGS, default=next(iter(THINGS)), help="(default: %(default)s)")
    add("--word", help="what it was called in training (default: the thing's word)")
    add("--lora", metavar="PATH", help="a LoRA that knows it: a file or a folder")
    add("--lora-scale", type=float, default=1.0, metavar="S", help="(default: 1)")
    add("--textual-inversion", metavar="PATH", help="the file of its word")
    add("--base", help="the model before its training (default: the built-in model)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    arguments = parser().parse_args(argv)
    return run(lambda: evaluate(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
