"""Measure a ControlNet of the built-in model: whether pictures follow the drawings that it reads.

    python -m tools.builtin_model.evaluate_control --data data/icons --output runs/control

For each of 200 icons that no training saw, its drawing (`--preprocessor`) and its caption make a
picture. The edges of the drawing and those of the picture, both by canny, are compared: F1, where
an edge counts as found if the other has one within 2 px. The same prompts and seeds without the
ControlNet are the chance level. With `--judge`, the folder of an earlier run of
`tools.builtin_model.evaluate`, its classifier says in how many the thing is recognised, with and
without. Writes `report.json` and a contact sheet: drawings, pictures that follow, pictures without.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ldm.cli.common import check_counts, run
from ldm.control.preprocessors import PREPROCESSORS, canny
from ldm.control.preprocessors.filters import dilate
from ldm.images import image_grid, save_image
from ldm.pipeline import Pipeline
from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluate import log, read_data
from tools.builtin_model.evaluation import classifier
from tools.builtin_model.evaluation.options import shared_parser

COUNT, TOLERANCE, SHOWN = 200, 2, 12
BATCH = 20


def edges(picture: Image.Image) -> np.ndarray:
    """Return whether each pixel is on an edge, bool (H, W)."""
    return np.asarray(canny(picture))[..., 0] > 0


def edge_agreement(drawing: Image.Image, picture: Image.Image, tolerance: int = TOLERANCE) -> float:
    """Return F1 of the edges of two pictures of one size; 1 if neither has any.

    Precision is the share of the picture's edges with one of the drawing's within ``tolerance`` px,
    recall the share of the drawing's with one of the picture's.
    """
    wanted, found = edges(drawing), edges(picture)
    if not wanted.any() and not found.any():
        return 1.0
    precision = (found & dilate(wanted, tolerance)).sum() / max(found.sum(), 1)
    recall = (wanted & dilate(found, tolerance)).sum() / max(wanted.sum(), 1)
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def held_out_rows(data: CaptionedImages, count: int) -> list[int]:
    """Return the first icons out of training, evenly spread over the sets."""
    rows = data.held_out
    chosen = torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()
    return rows[chosen].tolist()


def draw(
    pipe: Pipeline, captions: list[str], drawings: list[Image.Image] | None, **options: Any
) -> list[Image.Image]:
    """Draw a picture of each caption, the i-th from the seed i, after its drawing if given."""
    found: list[Image.Image] = []
    for start in range(0, len(captions), BATCH):
        part = slice(start, start + BATCH)
        hints = {} if drawings is None else {"control_image": drawings[part]}
        output = pipe(captions[part], seed=start, **hints, **options)
        found += cast("list[Image.Image]", output.images)
    return found


def recognised(
    model: classifier.Classifier, nouns: list[str], pictures: list[Image.Image]
) -> float:
    """Return the share of pictures that the judge reads as their noun, of the nouns it knows."""
    known = [i for i, noun in enumerate(nouns) if noun in model.labels.nouns]
    seen = np.stack([np.asarray(pictures[i]) for i in known])
    opinions = model.opinions(seen, list(model.labels.nouns))
    pairs = zip(known, opinions, strict=True)
    return float(np.mean([opinion.nouns[0] == nouns[i] for i, opinion in pairs]))


def write(report: dict[str, Any], rows: list[list[Image.Image]], shown: int, folder: Path) -> None:
    """Print and write the report, and a contact sheet of so many pictures of each row."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2)
    (folder / "report.json").write_text(text + "\n")
    print(text)
    count = len(rows[0])
    sheet = [pictures[i * count // shown] for pictures in rows for i in range(shown)]
    save_image(image_grid(sheet, shown), folder / "contact.png")


def evaluate(arguments: argparse.Namespace) -> None:
    """Draw, compare and write; raises LDMError for whatever cannot work."""
    check_counts(arguments, "prompts", "num_inference_steps", "threads")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    data = read_data(arguments.data)
    model = classifier.load(arguments.judge)[0] if arguments.judge else None
    rows = held_out_rows(data, arguments.prompts or COUNT)
    icons = [Image.fromarray(data.images[row]) for row in rows]
    preprocess = PREPROCESSORS[arguments.preprocessor]
    drawings = [preprocess(icon) for icon in icons]
    captions = data.captions(torch.tensor(rows))
    pipe = Pipeline.from_pretrained(arguments.model, device="cpu")
    options: dict[str, Any] = {"num_inference_steps": arguments.num_inference_steps}
    log(f"drawing {len(rows)} icons without the ControlNet")
    plain = draw(pipe, captions, None, **options)
    pipe.load_controlnet(arguments.controlnet)
    log(f"drawing {len(rows)} icons after their drawings ({arguments.preprocessor})")
    options["controlnet_conditioning_scale"] = arguments.control_scale
    steered = draw(pipe, captions, drawings, **options)
    report: dict[str, Any] = {"icons": len(rows), "preprocessor": arguments.preprocessor}
    for name, pictures in {"steered": steered, "plain": plain, "real": icons}.items():
        pairs = list(zip(drawings, pictures, strict=True))
        report[name] = {"edge F1": round(np.mean([edge_agreement(*pair) for pair in pairs]), 4)}
        if model is not None:
            nouns = [data.rows[row]["noun"] for row in rows]
            report[name]["recognised"] = round(recognised(model, nouns, pictures), 4)
    write(report, [drawings, steered, plain], SHOWN, arguments.output)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = shared_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--controlnet", default="weights/controlnet", help="(default: weights/controlnet)")
    add("--control-scale", type=float, default=1.0, metavar="S", help="(default: 1)")
    known = sorted(PREPROCESSORS.keys() - {"inpaint"})
    add("--preprocessor", default="scribble", choices=known, help="(default: scribble)")
    add("--num-inference-steps", "--steps", type=int, metavar="N", help="(default: the model's)")
    add("--judge", type=Path, metavar="DIR", help="folder with the judges of an evaluation")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    arguments = parser().parse_args(argv)
    return run(lambda: evaluate(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
