"""Measure the denoising loss of models on the same pictures, noise and times.

    python -m tools.builtin_model.measure_loss --model weights runs/latent --data data/icons3

The pictures are drawn as training draws them, from a data set of `build_icons` that none of the
models saw (`--seed 3 --held-out-seed 0`), and from its held-out icons, each with its caption.
Prints the mean square error of v with its standard error, over all times of the trainer's
distribution and over thirds of them; and, of each model after the first, how it differs from the
first one, picture by picture, which is far surer than the figures themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.cli.common import EXIT_CODES, check_counts, run
from ldm.cli.parsing import Parser
from ldm.pipeline import Pipeline
from ldm.training.batches import draw_times
from ldm.training.data import CaptionedImages
from ldm.training.finetuning.texts import text_states
from ldm.training.objectives import simple_error
from ldm.training.recipes.captioned_data import ids_of
from tools.builtin_model.evaluate import log, read_data
from tools.builtin_model.train import LOGIT_MEAN, LOGIT_STD

BATCH = 32
LEVELS = ("little noise", "middle", "much noise")  # thirds of the times


def drawn_rows(data: CaptionedImages, count: int, seed: int) -> dict[str, Tensor]:
    """Draw rows of training, each as often as training does, and as many held-out ones at most."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(data.weights.double(), count, True, generator=generator)
    return {"training's kind": data.train[chosen], "held-out icons": data.held_out[:count]}


@torch.no_grad()
def losses(pipe: Pipeline, data: CaptionedImages, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the error of v at each row, noised once, and the times: float32 (N,), int64 (N,)."""
    generator = torch.Generator().manual_seed(seed)
    times = draw_times(pipe.scheduler, len(rows), generator, LOGIT_MEAN, LOGIT_STD)
    dtype = next(pipe.unet.parameters()).dtype
    found = []
    for part, t in zip(rows.split(BATCH), times.split(BATCH), strict=True):
        x0 = pipe.vae.encode(data.pixels(part).to(dtype)).float()
        noise = torch.randn(x0.shape, generator=generator)
        texts = data.captions(part)
        ids = torch.stack([ids_of(pipe.text_models[0].tokenizer, text) for text in texts])
        states = text_states(pipe.text_models, ids[:, None], xl=False)
        output = pipe.unet(pipe.scheduler.add_noise(x0, noise, t).to(dtype), t, **states)
        found.append(simple_error(pipe.scheduler, output, x0, noise, t))
    return torch.cat(found), times


def summary(errors: Tensor, times: Tensor) -> dict[str, dict[str, float]]:
    """Return the mean and its standard error, of all and of each of LEVELS."""
    third = np.array_split(times.argsort().numpy(), len(LEVELS))
    parts = {"all": errors} | {name: errors[rows] for name, rows in zip(LEVELS, third, strict=True)}
    return {
        name: {"mean": part.mean().item(), "error": (part.std() / len(part) ** 0.5).item()}
        for name, part in parts.items()
    }


def measure(arguments: argparse.Namespace) -> None:
    """Measure and print; raises LDMError for whatever cannot work."""
    check_counts(arguments, "count", "threads")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    data = read_data(arguments.data)
    asked = drawn_rows(data, arguments.count, arguments.seed)
    report: dict[str, Any] = {}
    first: dict[str, Tensor] = {}
    for model in arguments.model:
        log(f"{model}: {arguments.count} pictures")
        pipe = Pipeline.from_pretrained(model, device="cpu", dtype=arguments.dtype)
        report[model] = {}
        for name, rows in asked.items():
            errors, times = losses(pipe, data, rows, arguments.seed)
            found = summary(errors, times)
            if name in first:
                found["all, less the first's"] = summary(errors - first[name], times)["all"]
            first.setdefault(name, errors)
            report[model][name] = found
    text = json.dumps(report, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


def parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXIT_CODES)
    add = parser.add_argument
    add("--model", nargs="+", required=True, help="diffusers folders of the built-in model's kind")
    add("--data", type=Path, required=True, help="data set of build_icons that no model saw")
    add("--count", type=int, default=2048, metavar="N", help="pictures of each kind (2048)")
    add("--seed", type=int, default=0, help="of the choice of pictures, times and noise (0)")
    add("--dtype", help="as of ldm-generate (default: by the device)")
    add("--threads", type=int, metavar="N", help="processor cores to use (default: torch's choice)")
    add("--output", type=Path, metavar="FILE", help="JSON file of the figures, too")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    arguments = parser().parse_args(argv)
    return run(lambda: measure(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
