"""Measure a LoRA that learnt a style: whether pictures have it, and still show what was asked for.

    python -m tools.builtin_model.evaluate_lora --lora style.safetensors --style outlined \\
        --data data/icons --judge runs/evaluation --output runs/style

Each of 200 prompts of one thing is drawn four times from one seed: by the base and with the LoRA,
without and with the style's word at its end. Two networks judge the pictures: the classifier of an
earlier run of `tools.builtin_model.evaluate` (its folder is `--judge`) names the things, and one of
six styles (trained in a quarter of an hour and kept there) the style. How well they do on icons
that they never saw is printed, too. Writes `report.json` and a contact sheet.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.cli.common import check_counts, run
from ldm.cli.parsing import Parser
from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline
from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluate import log, read_data
from tools.builtin_model.evaluate_control import recognised, write
from tools.builtin_model.evaluation import classifier, examples, judge, prompts, styles
from tools.builtin_model.evaluation.drawing import draw
from tools.builtin_model.evaluation.options import (
    add_drawing,
    add_judge,
    check_judge,
    shared_parser,
)
from tools.builtin_model.evaluation.prompts import FORTY, Prompt
from tools.builtin_model.evaluation.styles import StyleJudge
from tools.builtin_model.icons import new_style, variants
from tools.builtin_model.icons.captions import NEW_STYLES, STYLES
from tools.builtin_model.icons.nouns import read_everyday
from tools.builtin_model.icons.sources import BuildError

COUNT, SHOWN = 200, 16
WITHOUT, WITH = "without the word", "with the word"


def wanted(data: CaptionedImages, count: int) -> list[Prompt]:
    """Return prompts of one thing, those of `evaluate` in its order."""
    known = set(examples.known_nouns(data))
    nouns = [data.rows[i]["noun"] for i in data.held_out.tolist()]
    every = prompts.prompts([noun for noun in nouns if noun in known])
    return [prompt for _, prompt in prompts.choose(every, ("single",), count)]


def styled(prompt: Prompt, word: str, begin: float = 0.0) -> Prompt:
    """Ask for the style as captions do: at the end; from a share `begin` of the steps on."""
    text = f"{prompt.text}, {word}"
    return dataclasses.replace(prompt, text=f"[{prompt.text}:{text}:{begin}]" if begin else text)


def measure(
    things: classifier.Classifier,
    looks: StyleJudge,
    asked: Sequence[Prompt],
    pictures: Sequence[Image.Image],
    style: str,
) -> dict[str, float]:
    """Return the shares of pictures that are read as the style, and as what was asked."""
    blue_aside = frozenset(noun.noun for noun in read_everyday() if noun.blue_aside)
    judged = judge.judge(things, asked, pictures, FORTY, blue_aside)
    seen = looks.seen(np.stack([np.asarray(picture) for picture in pictures]))
    return {
        "style": round(float(np.mean([name == style for name in seen])), 4),
        "thing recognised": round(float(np.mean([item.recognised for item in judged])), 4),
    }


def accuracy(
    things: classifier.Classifier,
    looks: StyleJudge,
    data: CaptionedImages,
    new: new_style.NewStyle,
) -> dict[str, float]:
    """Return how often the judges are right about icons that no training of styles saw.

    The classifier of things has seen those of the new style.
    """
    rows = [i for i in data.held_out.tolist() if data.rows[i]["set"] in STYLES]
    pictures = {"": np.asarray(data.images[rows])}
    names = [STYLES[data.rows[i]["set"]] for i in rows]
    found: dict[str, float] = {}
    seen = np.array(looks.seen(pictures[""]))
    for word in STYLES.values():
        own = np.array(names) == word
        if own.any():
            found[f"style of {own.sum()} icons, {word}"] = float(np.mean(seen[own] == word))
    size = data.images.shape[1]
    icons = [variants.held_out(subject, size)[0] for subject in new.held_out]
    seen = np.array(looks.seen(np.stack(icons)))
    found[f"style of {len(icons)} icons, {new_style.WORD}"] = float(np.mean(seen == new_style.WORD))
    nouns = [subject.noun.noun if subject.noun else "" for subject in new.held_out]
    found["things in these"] = recognised(things, nouns, [Image.fromarray(icon) for icon in icons])
    return {name: round(value, 4) for name, value in found.items()}


def read_new_style(archives: Path) -> new_style.NewStyle:
    """Read the icons of the sixth style. Raises ArgumentError where a package cannot be had."""
    try:
        return new_style.read(archives)
    except BuildError as error:
        raise ArgumentError(f"--archives {archives}: {error}") from None


def evaluate(arguments: argparse.Namespace) -> None:
    """Draw, judge and write; raises LDMError for whatever cannot work."""
    if not 0 <= arguments.begin < 1:
        raise ArgumentError(f"--begin is {arguments.begin}; it must be in [0, 1)")
    check_counts(arguments, "prompts", "batch_size", "num_inference_steps", "threads")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    check_judge(arguments.judge)
    data = read_data(arguments.data)
    asked = wanted(data, COUNT if arguments.prompts is None else arguments.prompts)
    pipe = Pipeline.from_pretrained(arguments.model, device="cpu", dtype=arguments.dtype)
    new = read_new_style(arguments.archives)
    plain = styles.new_examples(new.train, data.images.shape[1])
    things = classifier.load(arguments.judge)[0]
    looks = styles.trained(data, arguments.judge, log, {new_style.WORD: plain})
    style, word = arguments.style, arguments.word or arguments.style
    report: dict[str, object] = {"lora": arguments.lora, "style": style, "word": word}
    report |= {"scale": arguments.lora_scale, "begin": arguments.begin}
    report["prompts"] = len(asked)
    report["judges"] = accuracy(things, looks, data, new)
    log(str(report["judges"]))
    kinds = {WITHOUT: asked, WITH: [styled(prompt, word, arguments.begin) for prompt in asked]}
    seeds = [arguments.seed + i for i in range(len(asked))]
    shown = []
    for name in ("base", "lora"):
        if name == "lora":
            lora = pipe.load_lora_weights(arguments.lora, scale=arguments.lora_scale)
            log(f"{arguments.lora}: {lora.summary}")
        for words, texts in kinds.items():
            log(f"{name}, {words}: {len(texts)} pictures")
            pictures, _ = draw(pipe, texts, seeds, arguments, log)
            report[f"{name}, {words}"] = measure(things, looks, texts, pictures, style)
            shown.append(pictures)
    write(report, shown, min(SHOWN, len(asked)), arguments.output)


def parser() -> Parser:
    """Build the parser of the command line."""
    parser = shared_parser(__doc__.splitlines()[0])
    add_drawing(parser)
    add_judge(parser)
    add = parser.add_argument
    add("--lora", required=True, metavar="PATH", help="what was trained: a file or a folder")
    add("--lora-scale", type=float, default=1.0, metavar="S", help="(default: 1)")
    words = [*STYLES.values(), *NEW_STYLES.values()]
    add(
        "--style",
        default=new_style.WORD,
        choices=words,
        help=f"as the judge calls it: {', '.join(words)} (default: {new_style.WORD})",
    )
    add("--word", help="that ended the captions in training (default: that of --style)")
    add(
        "--begin",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the steps, before the word is read: [a cat:a cat, WORD:0.2] (default: 0)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    arguments = parser().parse_args(argv)
    return run(lambda: evaluate(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
