"""What each fast mode costs in quality: prompts drawn in every mode, judged as by evaluate.py.

    python -m tools.builtin_model.evaluate_modes --data data/icons

Every mode draws the same pictures of one thing as the exact one, in float32; the table says how
near it comes to them (PSNR of all pixels together), whether the judges still see the thing and the
colour that were asked for, and how long a picture takes. Prints it and writes `modes.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from ldm.cli.common import check_counts, run
from ldm.cli.fast import MODES
from ldm.fast.fp8 import quantize
from ldm.pipeline import Pipeline
from tools.builtin_model.evaluate import log, read_data
from tools.builtin_model.evaluation import figures, fit, judge, prompts
from tools.builtin_model.evaluation.options import shared_parser
from tools.builtin_model.icons.nouns import read_everyday

INTERVAL, CACHE = ({name: MODES[name]} for name in ("guidance_interval", "deep_cache"))


class Mode(NamedTuple):
    """How to draw."""

    dtype: str
    int8: bool
    arguments: dict[str, Any]
    fp8: bool = False  # emulated on the CPU: of the pictures alone, its seconds mean nothing


MODES = {
    "exact, float32": Mode("float32", False, {}),
    "exact, bfloat16": Mode("bfloat16", False, {}),
    "guidance interval": Mode("float32", False, INTERVAL),
    "DeepCache 3": Mode("float32", False, CACHE),
    "int8": Mode("float32", True, {}),
    "fp8, emulated": Mode("float32", False, {}, fp8=True),
    "all three": Mode("float32", True, INTERVAL | CACHE),
    "interval and DeepCache, bfloat16": Mode("bfloat16", False, INTERVAL | CACHE),
}
HEAD = "| mode | seconds a picture | PSNR, dB | thing | colour | both |\n" + "|---" * 6 + "|"


def draw(mode: Mode, texts: list[str], arguments: argparse.Namespace) -> tuple[np.ndarray, float]:
    """(N, H, W, 3) pictures, the i-th from the seed i, and the seconds for one."""
    pipe = Pipeline.from_pretrained(arguments.model, device="cpu", dtype=mode.dtype)
    pipe.optimize(not mode.fp8, int8=mode.int8)
    if mode.fp8:  # the layers as they are, as on CUDA: else they would be packed
        quantize(pipe.unet)
    began = time.monotonic()
    pictures: list[np.ndarray] = []
    for start in range(0, len(texts), arguments.batch_size):
        some = texts[start : start + arguments.batch_size]
        steps = arguments.num_inference_steps
        output = pipe(some, seed=start, num_inference_steps=steps, **mode.arguments)
        pictures += map(np.asarray, output.images)
    return np.stack(pictures), (time.monotonic() - began) / len(texts)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB, of 8-bit pixels; infinite where they are the same."""
    error = np.square(a.astype(float) - b).mean()
    return 10 * np.log10(255**2 / error) if error else float("inf")


def evaluate(arguments: argparse.Namespace) -> None:
    """Everything that the command does; raises LDMError for whatever cannot work."""
    check_counts(arguments, "batch_size", "num_inference_steps", "threads")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    chosen = prompts.choose(prompts.prompts(), figures.NAMED, arguments.prompts)
    wanted = [prompt for _, prompt in chosen]
    arguments.output.mkdir(parents=True, exist_ok=True)
    classifier = fit.trained(read_data(arguments.data), arguments.output, arguments.archives, log)
    blue_aside = frozenset(noun.noun for noun in read_everyday() if noun.blue_aside)
    exact, rows = None, {}
    print(HEAD, flush=True)
    for name, mode in MODES.items():
        pictures, seconds = draw(mode, [prompt.text for prompt in wanted], arguments)
        exact = pictures if exact is None else exact
        seen = judge.judge(classifier, wanted, pictures, prompts.FORTY, blue_aside)
        coloured = [item for item in seen if item.prompt.colour]
        shares = {
            "object": figures.share(seen, lambda j: j.recognised),
            "colour": figures.share(coloured, lambda j: j.coloured),
            "object_and_colour": figures.share(coloured, lambda j: j.right),
        }
        rows[name] = {"seconds": seconds, "psnr": psnr(pictures, exact), **shares}
        cells = " | ".join("–" if share is None else f"{share:.1%}" for share in shares.values())
        print(f"| {name} | {seconds:.2f} | {rows[name]['psnr']:.1f} | {cells} |", flush=True)
    (arguments.output / "modes.json").write_text(json.dumps(rows, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    parser = shared_parser(__doc__.splitlines()[0])
    parser.set_defaults(prompts=240)
    add = parser.add_argument
    add(
        "--num-inference-steps",
        "--steps",
        type=int,
        default=20,
        metavar="N",
        help="denoising steps (default: 20)",
    )
    add("--batch-size", type=int, default=8, metavar="N", help="pictures at once (default: 8)")
    arguments = parser.parse_args(argv)
    return run(lambda: evaluate(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
