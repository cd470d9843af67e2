"""Draw digits of every class and count how many a classifier reads as the digit asked for.

    python -m tools.read_digits --model runs/mnist --output runs/mnist/read

The reader is a small network of our own. It learns from the real training digits of the run's data
set (a minute or two on two cores) and is itself measured on the digits held out. The Fréchet
distance between what it sees in the drawn digits and in those held out is printed too, which is all
that there is to say of a model without classes; beside it that of as many training digits. Writes
`grid.png`, a row for each class, and `report.json`. Any labelled set of small pictures will do.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ldm.cli.common import EXIT_CODES, check_counts, notify, run
from ldm.cli.parsing import Parser
from ldm.config import read_json, write_json
from ldm.errors import ArgumentError
from ldm.images import image_grid, save_image, to_tensor
from ldm.pipeline import Pipeline
from ldm.training.batches import check_classes
from ldm.training.data import Dataset, open_data
from tools.builtin_model.evaluation import frechet

STEPS, BATCH, LEARNING_RATE = 1000, 128, 2e-3
SHIFT = 1 / 16  # of the side, that real digits are moved by, at most, to learn from
COLUMNS = 10  # digits of a class in the grid
SETTINGS = ("num_inference_steps", "guidance_scale", "classifier_scale")  # of a report


def reader(channels: int, size: int, classes: int) -> nn.Sequential:
    """Pixels (B, C, size, size) in [-1, 1] → logits (B, classes): as LeNet-5, with more maps."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * (size // 8) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def learn(data: Dataset, steps: int) -> nn.Sequential:
    """Train a reader on the data's training pictures."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    _, channels, size, _ = data.pixels(data.train[:1]).shape
    model = reader(channels, size, len(data.classes))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    shift = int(SHIFT * size)
    for step in range(steps):
        batch = data.batch(step, BATCH, generator)
        moves = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
        logits = model(batch.pixels.roll(moves, (2, 3)))
        assert batch.labels is not None  # see check_classes
        loss = F.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            notify(f"reader: step {step + 1}/{steps}, loss {loss:.3f}")
    return model.eval()


@torch.no_grad()
def read(model: nn.Module, pixels: Tensor) -> Tensor:
    """Predict the class of each picture, int64 (N,)."""
    return torch.cat([model(part).argmax(1) for part in pixels.split(500)])


@torch.no_grad()
def features(model: nn.Sequential, pixels: Tensor) -> np.ndarray:
    """Return the reader's features of each picture, (N, 128)."""
    return torch.cat([model[:-1](part) for part in pixels.split(500)]).numpy()


def accuracy(model: nn.Module, data: Dataset) -> float:
    """Return the share of held-out pictures read right. Raises ArgumentError without any."""
    if not len(data.held_out):
        raise ArgumentError("the data set holds nothing out to measure the reader on")
    return float(
        (read(model, data.pixels(data.held_out)) == data.labels(data.held_out)).float().mean()
    )


def distances(
    model: nn.Sequential, data: Dataset, drawn: Tensor, by_class: bool
) -> dict[str, float]:
    """Fréchet distances to the held-out pictures: of the drawn ones, and of as many real ones.

    by_class: whether the drawn ones, and so the real ones, are equally many of each class.
    """
    held_out = features(model, data.pixels(data.held_out))
    rows = data.train[: len(drawn)]
    if by_class:
        labels = data.labels(data.train)
        count = len(drawn) // len(data.classes)
        rows = torch.cat([data.train[labels == k][:count] for k in range(len(data.classes))])
    real = data.pixels(rows)
    found = {
        "frechet": frechet.distance(features(model, drawn), held_out),
        "frechet_of_real": frechet.distance(features(model, real), held_out),
    }
    print(
        f"Fréchet distance to {len(held_out)} held out: {found['frechet']:.2f} of {len(drawn)} "
        f"drawn, {found['frechet_of_real']:.2f} of {len(real)} real ones"
    )
    return found


def counted(model: nn.Module, drawn: Tensor, names: list[str]) -> dict[str, Any]:
    """Return the shares, by class, of pictures that are read as the class of their prompt."""
    classes = torch.arange(len(names)).repeat_interleave(len(drawn) // len(names))
    right = (read(model, drawn) == classes).float().view(len(names), -1).mean(1)
    shares = dict(zip(names, right.tolist(), strict=True))
    for name, share in shares.items():
        print(f"{name:>10} {share:.1%}")
    print(f"{'all':>10} {right.mean():.1%} of {len(drawn)} read as the class asked")
    return {"read_as_asked": float(right.mean()), "by_class": shares}


def draw(
    pipe: Pipeline, names: list[str], arguments: argparse.Namespace
) -> tuple[list[Image.Image], float]:
    """``arguments.count`` pictures of each name, name after name, and the seconds for one."""
    prompts = [name for name in names for _ in range(arguments.count)]
    pictures: list[Image.Image] = []
    started = time.monotonic()
    for start in range(0, len(prompts), arguments.batch_size):
        pictures += pipe(
            prompts[start : start + arguments.batch_size],
            seed=arguments.seed + start,
            num_inference_steps=arguments.num_inference_steps,
            guidance_scale=arguments.guidance_scale,
            classifier_scale=arguments.classifier_scale,
            sampler=arguments.sampler,
        ).images
        notify(f"{len(pictures)}/{len(prompts)} drawn, {time.monotonic() - started:.0f} s")
    return pictures, (time.monotonic() - started) / len(prompts)


def measure(arguments: argparse.Namespace) -> None:
    """Everything that the command does; raises LDMError for whatever cannot work."""
    check_counts(arguments, "count", "batch_size", "num_inference_steps", "reader_steps", "threads")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pipe = Pipeline.from_pretrained(arguments.model, dtype="float32")
    config = read_json(arguments.model / "config.json", optional=True)
    name = arguments.data or config.get("data")
    if name is None:
        raise ArgumentError(f"{arguments.model} is not of a run, so --data must name the digits")
    data = open_data(name, config.get("options", {}).get("data", {}))
    names = check_classes(data, name, "of which the reader learns")
    model = learn(data, arguments.reader_steps)
    real = accuracy(model, data)
    print(f"reader: {real:.2%} of {len(data.held_out)} real digits right that it never saw")

    by_class = pipe.unet.config.class_conditional
    prompts = names if by_class else [""] * len(names)
    pictures, seconds = draw(pipe, prompts, arguments)
    drawn = to_tensor([picture.convert("RGB") for picture in pictures])
    channels = data.pixels(data.train[:1]).shape[1]
    drawn = drawn.mean(1, keepdim=True) if channels == 1 else drawn
    used = {key: getattr(pipe.defaults, key) for key in SETTINGS}
    used |= {key: value for key in SETTINGS if (value := getattr(arguments, key)) is not None}
    report: dict[str, Any] = {
        "model": str(arguments.model),
        **used,
        "reader_on_real": real,
        "count_per_class": arguments.count,
        "seconds_per_picture": seconds,
        **distances(model, data, drawn, by_class),
    }
    if by_class:
        report |= counted(model, drawn, names)
    arguments.output.mkdir(parents=True, exist_ok=True)
    columns = min(COLUMNS, arguments.count)
    shown = [
        pictures[row * arguments.count + i] for row in range(len(names)) for i in range(columns)
    ]
    save_image(image_grid(shown, columns), arguments.output / "grid.png", None, True)
    write_json(arguments.output / "report.json", report)
    print(f"written to {arguments.output}: grid.png, report.json")


def parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXIT_CODES)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a run of recipe pixel")
    add("--data", help="the real pictures (default: what the run learnt from)")
    add("--output", type=Path, default=Path("runs/read"), help="folder (default: runs/read)")
    add("--count", type=int, default=50, metavar="N", help="drawn of each class (default: 50)")
    add("--num-inference-steps", "--steps", type=int, metavar="N", help="(default: the model's)")
    add("--guidance-scale", type=float, metavar="S", help="(default: the model's)")
    add("--classifier-scale", type=float, metavar="S", help="(default: the model's)")
    add("--sampler", metavar="NAME", help="as of ldm-generate (default: the model's own)")
    add("--seed", type=int, default=0, help="of the first picture; the next count up (default: 0)")
    add("--batch-size", type=int, default=50, metavar="N", help="drawn at once (default: 50)")
    add("--reader-steps", type=int, default=STEPS, metavar="N", help=f"(default: {STEPS})")
    add("--threads", type=int, metavar="N", help="processor cores to use (default: torch's choice)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    arguments = parser().parse_args(argv)
    return run(lambda: measure(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
