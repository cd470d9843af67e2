"""Print the variational bound of a pixel model on −log p(x₀), term by term, in bits per dimension.

    python -m tools.likelihood --model runs/improved --count 64

The pictures are held-out ones of the run's data set, or of --data. All T terms are computed, which
takes T calls of the network for each picture; --calls N estimates the total, without bias, from N.
"""

import argparse
import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.cli.common import EXIT_CODES, check_counts, run
from ldm.cli.parsing import Parser
from ldm.config import read_json, write_json
from ldm.errors import ArgumentError, DataError
from ldm.likelihood import Predict, bound_estimate, bound_terms, spans
from ldm.pipeline import Pipeline
from ldm.training.batches import held_out_batch
from ldm.training.data import open_data
from ldm.training.data.dataset import PictureBatch

ROWS = 8  # of the table: spans of t, the later the longer


def pictures(arguments: argparse.Namespace, pipe: Pipeline) -> PictureBatch:
    """Return the pictures to measure. Raises ArgumentError or DataError where there are none."""
    config = read_json(arguments.model / "config.json", optional=True)
    name = arguments.data or config.get("data")
    if name is None:
        raise ArgumentError(f"{arguments.model} is not of a run, so --data must name pictures")
    unet = pipe.unet.config
    size = {"size": unet.sample_size, "channels": unet.in_channels}
    data = open_data(name, config.get("options", {}).get("data", size))
    batch = held_out_batch(data, arguments.count)
    if batch is None:
        raise DataError(f"{name} holds nothing out; set data.held_out")
    if unet.class_conditional and batch.labels is None:
        raise DataError(f"{name} has no labels, but the model is conditioned on the class")
    return batch


def predictor(pipe: Pipeline, labels: Tensor | None) -> Predict:
    """Return the U-Net as a function of (x_t, t), conditioned on the pictures' classes."""
    class_labels = labels if pipe.unet.config.class_conditional else None
    return lambda x, t: pipe.unet(x, t, class_labels=class_labels)


def table(terms: Tensor) -> list[str]:
    """Lines for the mean terms (T + 1,), in bits per dimension: L_0, spans of L_t, L_T."""
    total = len(terms) - 1
    lines = [f"{'L_0 (decoder)':<18} {terms[0]:9.5f}"]
    borders = spans(total, ROWS)
    for start, end in itertools.pairwise(borders):
        name = f"L_{start}" if end - start == 1 else f"L_{start} … L_{end - 1}"
        part = terms[start:end]
        lines.append(f"{name:<18} {part.sum():9.5f}   {part.mean():.2e} each")
    lines.append(f"{f'L_{total} (prior)':<18} {terms[-1]:9.5f}")
    lines.append(f"{'rate':<18} {terms[1:].sum():9.5f}")
    lines.append(f"{'distortion (L_0)':<18} {terms[0]:9.5f}")
    return lines


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> None:
    """Everything that the command does; raises LDMError for whatever cannot work."""
    check_counts(arguments, "count", "batch_size", "threads")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pipe = Pipeline.from_pretrained(arguments.model, dtype="float32")
    if pipe.unet.config.cross_attention_dim is not None:
        raise ArgumentError(f"{arguments.model} works on latents; the bound is of pixel models")
    batch = pictures(arguments, pipe)
    generator = torch.Generator().manual_seed(arguments.seed)
    device = next(pipe.unet.parameters()).device
    found = []
    for start in tqdm(range(0, len(batch.pixels), arguments.batch_size), unit="batch"):
        rows = slice(start, start + arguments.batch_size)
        labels = None if batch.labels is None else batch.labels[rows].to(device)
        given = pipe.scheduler, predictor(pipe, labels), batch.pixels[rows].to(device), generator
        if arguments.calls:
            found.append(bound_estimate(*given, arguments.calls, pipe.scheduler.clip).cpu())
        else:
            found.append(bound_terms(*given, pipe.scheduler.clip).cpu())
    terms = torch.cat(found)
    totals = terms if arguments.calls else terms.sum(1)
    if not arguments.calls:
        print("\n".join(table(terms.mean(0))))
    error = totals.std() / len(totals) ** 0.5 if len(totals) > 1 else float("nan")
    print(f"{'total':<18} {totals.mean():9.5f} ± {error:.5f} bits/dim, {len(totals)} pictures")
    if arguments.output:
        values: dict[str, object] = {
            "total": float(totals.mean()),
            "error": float(error),
            "pictures": len(totals),
        }
        if not arguments.calls:
            values["terms"] = terms.mean(0).tolist()
        write_json(arguments.output, values)


def parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXIT_CODES)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a run, or of a DDPMPipeline")
    add("--data", help="a data set (default: what the run learnt from; what that held out)")
    add("--count", type=int, default=64, metavar="N", help="of pictures (default: 64)")
    add("--calls", type=int, metavar="N", help="estimate the total from N calls a picture")
    add("--batch-size", type=int, default=32, metavar="N", help="pictures at once (default: 32)")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add("--output", type=Path, metavar="FILE", help="a JSON file for all the terms")
    add("--threads", type=int, metavar="N", help="processor cores to use (default: torch's choice)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    arguments = parser().parse_args(argv)
    return run(lambda: measure(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
