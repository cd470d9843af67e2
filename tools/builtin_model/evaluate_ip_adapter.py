"""Measure the built-in model's IP-Adapter: whether pictures take over colours and style.

    python -m tools.builtin_model.evaluate_ip_adapter --data data/icons --output runs/ip

Each of 100 icons that no training saw is read beside a text that names another thing. Compared with
the icon are the mean colour of what is drawn (its distance in OKLab) and its style (as the judge of
`tools.builtin_model.evaluate` names it, trained in minutes and kept in `--output` if it is not
there). The chance levels are the same texts and seeds without the icon, and, for the colour, with
the icon of another row. Writes `report.json` and a contact sheet: icons, pictures with and without.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ldm.cli.common import check_counts, run
from ldm.pipeline import Pipeline
from tools.builtin_model.evaluate import log, read_data
from tools.builtin_model.evaluate_control import held_out_rows, write
from tools.builtin_model.evaluation import styles
from tools.builtin_model.evaluation.colours import object_mask
from tools.builtin_model.evaluation.options import shared_parser
from tools.builtin_model.icons.captions import STYLES
from tools.builtin_model.icons.colour import rgb_to_lch

COUNT, SHOWN = 100, 16
THINGS = ("a cat", "a car", "a house", "a tree", "a bird", "a star", "a flower", "a boat")


def mean_colour(picture: Image.Image) -> np.ndarray:
    """Return the mean colour of a picture's object, or of all of it without one: OKLab (3,)."""
    rgb = np.asarray(picture.convert("RGB"))
    mask = object_mask(rgb)
    lightness, chroma, hue = np.moveaxis(rgb_to_lch(rgb[mask if mask.any() else ...]), -1, 0)
    angle = np.deg2rad(hue)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    return lab.reshape(-1, 3).mean(axis=0)


def colour_distance(pictures: list[Image.Image], others: list[Image.Image]) -> float:
    """Return the mean distance in OKLab of the objects of pairs; black to white is 1."""
    pairs = zip(pictures, others, strict=True)
    return float(np.mean([np.linalg.norm(mean_colour(a) - mean_colour(b)) for a, b in pairs]))


def draw(pipe: Pipeline, icons: list[Image.Image] | None, **options: Any) -> list[Image.Image]:
    """Draw the things in turn, the i-th from the seed i, beside its icon if given."""
    found: list[Image.Image] = []
    for i in range(options.pop("count")):
        more = {} if icons is None else {"ip_adapter_image": icons[i]}
        output = pipe(THINGS[i % len(THINGS)], seed=i, **more, **options)
        found += cast("list[Image.Image]", output.images)
    return found


def evaluate(arguments: argparse.Namespace) -> None:
    """Draw, compare and write; raises LDMError for whatever cannot work."""
    check_counts(arguments, "prompts", "num_inference_steps", "threads")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    data = read_data(arguments.data)
    rows = held_out_rows(data, arguments.prompts or COUNT)
    icons = [Image.fromarray(data.images[row]) for row in rows]
    wanted = [STYLES.get(data.rows[row].get("set", ""), "") for row in rows]
    arguments.output.mkdir(parents=True, exist_ok=True)
    judge = styles.trained(data, arguments.output, log)
    pipe = Pipeline.from_pretrained(arguments.model, device="cpu")
    options: dict[str, Any] = {"num_inference_steps": arguments.num_inference_steps}
    options["count"] = len(rows)
    log(f"drawing {len(rows)} pictures without an icon")
    plain = draw(pipe, None, **options)
    if arguments.ip_adapter:
        pipe.load_ip_adapter(arguments.ip_adapter, image_encoder=arguments.image_encoder)
    log(f"drawing {len(rows)} pictures beside their icons")
    read = draw(pipe, icons, **options, ip_adapter_scale=arguments.scale)
    report: dict[str, Any] = {"icons": len(rows), "scale": arguments.scale}
    for name, pictures in {"with": read, "without": plain}.items():
        seen = judge.seen(np.stack([np.asarray(picture) for picture in pictures]))
        report[name] = {
            "colour distance": round(colour_distance(icons, pictures), 4),
            "colour distance to another icon": round(
                colour_distance([*icons[1:], icons[0]], pictures), 4
            ),
            "style of the icon": round(
                float(np.mean([a == b for a, b in zip(seen, wanted, strict=True)])), 4
            ),
        }
    write(report, [icons, read, plain], SHOWN, arguments.output)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = shared_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ip-adapter", metavar="PATH", help="an adapter's folder or file (default: the model's)")
    add("--image-encoder", metavar="PATH", help="its encoder (default: the model's)")
    add("--scale", type=float, default=1.0, metavar="S", help="of the adapter (default: 1)")
    add("--num-inference-steps", "--steps", type=int, metavar="N", help="(default: the model's)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    arguments = parser().parse_args(argv)
    return run(lambda: evaluate(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
