"""Train the built-in model's U-Net from nothing, on pictures composed while it learns.

    python -m tools.builtin_model.train --minutes 9

One command for a CUDA GPU (minutes) and for CPUs (days). Worker processes compose pictures of the
icon sets and their captions; the device encodes them and keeps the latest in a reservoir, from
which batches are drawn. The learning rate follows the time: it is at its end when the minutes are.
Run the same command to resume a run that was ended: it loses at most the last minute. `--start`
begins with the weights of another run, so that several short runs add up. Then `--train adapters`
trains the adapters of `weights/` beside the U-Net of the run.

OUTPUT has `unet/` (the averaged weights in parts of at most 15 MB), `words.json` (what it is shown,
for `weights/words.json` once these weights lie beside it), `samples.webp`, `metrics.jsonl` and
`run.json`, then a folder of each adapter; STATE has `checkpoints/`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.folder import load_component
from ldm.cli.common import EXIT_CODES, check_counts, notify, run
from ldm.cli.parsing import Parser
from ldm.cli.train import stopping
from ldm.clip import CLIPTextEncoder
from ldm.config import SchedulerConfig, UNetConfig, read_json, write_json
from ldm.config.generation import Defaults
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu
from ldm.images import image_grid
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.text.tokenizer import CLIPTokenizer
from ldm.training.batches import draw_times
from ldm.training.checkpoint import Learner, check_finite, checkpoints, load_state, save_state
from ldm.training.clock import Clock
from ldm.training.config import differences
from ldm.training.ema import EMA
from ldm.training.lock import only_run_in
from ldm.training.metrics import Metrics, append_row, cut_log
from ldm.training.muon import Muon
from ldm.training.objectives import simple_error
from ldm.training.warm_start import new_unet
from ldm.vae import AutoencoderKL
from tools.builtin_model.parts import save_in_parts
from tools.builtin_model.reservoir import Reservoir
from tools.builtin_model.supply import BLOCK, Source, Supply
from tools.builtin_model.train_adapters import Task, train_adapters

HERE = Path(__file__).parent
SIZE = 128  # px of a picture's side
CAPTION_DROPOUT = 0.1
LOGIT_MEAN, LOGIT_STD = -0.4, 1.0  # of the times: middle levels of noise, where shapes are learnt
WARMUP = 200  # steps of linear rise
DECAY_FROM = 0.5  # share of the time from which the rate falls, in a line to 0
EMA_DECAY = 0.998
MAX_GRAD_NORM = 1.0
LOG_SECONDS, CHECKPOINT_SECONDS = 10, 60
SAMPLINGS = 4  # contact sheets a run
ENOUGH = 20_000_000  # pictures that train this network well; for the estimate on a CPU
DEFAULTS = Defaults(num_inference_steps=20, guidance_scale=4.0)
PROMPTS = (
    "a red car", "a cat", "a pizza", "an owl", "a green apple", "a smiling face", "a castle",
    "a guitar, 3d", "a purple banana", "a blue dog on a yellow background",
    "a small tree on the left", "a tiny bird at the top right", "two red apples",
    "three blue cars", "four stars on a purple background", "three cats",
    "a red car and a green tree", "a cat next to a house", "a yellow star above a blue heart",
    "a dog and a pizza", "a blue fish to the left of a red umbrella",
    "a rocket on a black background", "an automobile", "a pink butterfly, flat", "a dragon",
    "a bicycle", "a whale", "an umbrella", "an airplane", "a bee", "a dog, bold",
    "a house, detailed", "a horse", "a penguin", "a tractor", "a sailboat", "a skyscraper",
    "an elephant", "a cup of coffee", "a pink rabbit",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The settings whose defaults depend on the device."""

    batch_size: int
    learning_rate: float
    workers: int
    capacity: int  # pictures in the reservoir
    first: int  # pictures in it before the first step
    reuse: int  # how often a picture is drawn from it, on average, if the workers keep up


def make_plan(arguments: argparse.Namespace, device: torch.device) -> Plan:
    """Return the device's defaults, overridden by the command line."""
    if device.type == "cuda":
        workers = max((os.cpu_count() or 1) - 1, 1)
        default = Plan(512, 1.5e-3, workers, capacity=300_000, first=16_384, reuse=3)
    else:
        # A worker takes time from the trainer: to compose and encode 1 of 3 pictures, a quarter.
        default = Plan(64, 1e-3, workers=1, capacity=20_000, first=1024, reuse=8)
    options = {field.name: getattr(arguments, field.name) for field in fields(Plan)}
    return replace(default, **{name: v for name, v in options.items() if v is not None})


class TimedTrainer:
    """The U-Net, what it learns from, and the state of its training.

    Not a recipe of ``ldm.training.loop``: there, batches and learning rates follow from the step,
    so that a run resumes bit-identical; here, they follow from the time and from what the workers
    have composed until then.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output: Path = arguments.output
        self.state = state_folder(arguments)
        self.seconds = 60 * arguments.minutes
        self.device = torch.device(arguments.device)
        self.plan = make_plan(arguments, self.device)
        self.batch_size = self.plan.batch_size
        weights: Path = arguments.weights
        self.vae = adapt_to_cpu(load_component(AutoencoderKL, weights / "vae", torch.float32))
        self.text_encoder = load_component(CLIPTextEncoder, weights / "text_encoder", torch.float32)
        self.tokenizer = CLIPTokenizer.from_pretrained(weights / "tokenizer")
        scheduler = weights / "scheduler" / "scheduler_config.json"
        self.scheduler = DDPMScheduler(SchedulerConfig.from_file(scheduler))
        words = self.output / "words.json"
        self.source = Source(arguments.archives, weights / "tokenizer", SIZE, arguments.seed, words)

        torch.manual_seed(arguments.seed)
        start = start_folder(arguments.start)
        self.unet = new_unet(UNetConfig.from_file(arguments.network), start).to(self.device)
        self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.settings = {
            "network": json.loads(json.dumps(self.unet.config.to_dict())),  # with lists for tuples
            "start": start,
            "seed": arguments.seed,
            "device": device_name(self.device),
        }
        optimizer = Muon(self.unet.parameters(), lr=self.plan.learning_rate)
        self.ema = EMA(self.unet, EMA_DECAY)
        self.learner = Learner(self.unet, self.ema, optimizer)
        self.step = self.seen = 0  # steps and pictures of this run, over all sessions
        self.composed = 0  # pictures that this session's workers have composed
        self.times = torch.Generator()  # draws the times of each batch
        self.metrics = Metrics()
        self.clock = Clock()

    def resume(self, began: float) -> None:
        """Go on from the newest checkpoint of STATE, if there is one.

        began: what ``time.monotonic`` returned when the command began, which counts.
        Raises ArgumentError where that is a run of another network, start or seed.
        """
        if checkpoints(self.state):
            before = read_json(self.output / "run.json")
            changed = differences({key: before.get(key) for key in self.settings}, self.settings)
            changed.pop("device", None)
            if changed:
                how = "; ".join(f"{key} was {values}" for key, values in changed.items())
                raise ArgumentError(
                    f"{self.output} holds another run: {how}. Give the old settings, or another "
                    "--output for a new run"
                )
            self.seen = before["pictures"]
        self.step, spent = load_state(self.state, self.learner)
        self.clock = Clock(spent, began)
        self.output.mkdir(parents=True, exist_ok=True)
        cut_log(self.output, self.step)

    def share(self) -> float:
        """Return the share of the run's time that has gone by."""
        return self.clock.spent() / self.seconds

    def rate(self) -> float:
        """Return the learning rate: a rise by steps, a plateau, and by time a fall to 0."""
        rise = (self.step + 1) / WARMUP
        fall = max(1 - self.share(), 0.0) / (1 - DECAY_FROM)
        return self.plan.learning_rate * min(1.0, rise, fall)

    def loss(self, latents: Tensor, contexts: Tensor) -> Tensor:
        """Return L_simple (Ho et al. 2020, eq. 14) of v at random times of latents (B, C, h, w)."""
        t = draw_times(self.scheduler, len(latents), self.times, LOGIT_MEAN, LOGIT_STD)
        t, noise = t.to(self.device, non_blocking=True), torch.randn_like(latents)
        x_t = self.scheduler.add_noise(latents, noise, t)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            output = self.unet(x_t, t, contexts)
        return simple_error(self.scheduler, output, latents, noise, t).mean()

    def train_step(self, reservoir: Reservoir) -> None:
        """Update the weights once and average them."""
        optimizer = self.learner.optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.rate()
        loss = self.loss(*reservoir.draw(self.batch_size, CAPTION_DROPOUT))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.unet.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        self.ema.update(self.unet, self.step)
        self.step += 1
        self.seen += self.batch_size
        self.metrics.add({"loss": loss, "grad_norm": norm})
        self.metrics.watch(self.step, loss)
        self.metrics.watch(self.step, norm)

    def after_step(self) -> dict[str, Any] | None:
        """Log, save a checkpoint and draw samples, each if it is due; returns a row of the log.

        Raises TrainingError where a loss or gradient was not finite.
        """
        row = None
        if self.clock.since("log") >= LOG_SECONDS:
            row = self.log()
        if self.clock.since("checkpoint") >= CHECKPOINT_SECONDS:
            self.save()
        if self.clock.since("sample") >= self.seconds / SAMPLINGS:
            self.draw()
        return row

    def train(self, compiled: bool, stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """Train until the minutes end, yielding the figures of every ten seconds."""
        # From the step on, so that a resumed run does not repeat the first session's noise.
        self.times.manual_seed(self.settings["seed"] + self.step)
        torch.manual_seed(self.settings["seed"] + self.step)
        if compiled:
            self.unet.compile()
        empty = torch.tensor(self.tokenizer([""]))[0]
        reservoir = Reservoir(
            self.vae, self.text_encoder, empty, SIZE, self.plan.capacity, self.device
        )
        with Supply(self.source, self.plan.workers, self.state / "pictures") as supply:
            while reservoir.count < self.plan.first and not stop():
                if block := supply.take(timeout=1.0):
                    reservoir.put(*block)
            before = self.seen
            for name in ("log", "checkpoint", "sample"):
                self.clock.restart(name)
            while self.share() < 1 and not stop():
                wanted = self.plan.first + (self.seen - before) / self.plan.reuse
                while reservoir.count + BLOCK <= wanted and (block := supply.take()):
                    reservoir.put(*block)
                self.composed = reservoir.count
                self.try_step(reservoir)
                if row := self.after_step():
                    yield row
            if self.metrics.sums:
                yield self.log()
        self.save()
        if not stop():
            self.draw()

    def try_step(self, reservoir: Reservoir) -> None:
        """Run ``train_step``; where the device's memory is short, halve the batch from now on."""
        while True:
            try:
                self.train_step(reservoir)
                return
            except torch.OutOfMemoryError:
                if self.batch_size < 2:
                    raise
                self.batch_size //= 2
                notify(f"the device's memory is short: from now on batches of {self.batch_size}")
                self.learner.optimizer.zero_grad()
            torch.cuda.empty_cache()

    def log(self) -> dict[str, Any]:
        """Add a row to `metrics.jsonl`. Raises TrainingError where a loss was not finite."""
        self.metrics.check()
        means = self.metrics.take(None, self.clock.restart("log"))
        row = {
            "step": self.step,
            "seconds": round(self.clock.spent(), 1),
            "pictures": self.seen,
            "loss": round(means["loss"], 5),
            "grad_norm": round(means["grad_norm"], 4),
            "lr": round(self.rate(), 7),
            "pictures_per_second": round(means["steps_per_second"] * self.batch_size, 1),
            "composed": self.composed,
        }
        append_row(self.output, row)
        return row

    def save(self) -> None:
        """Write the averaged weights and the checkpoint."""
        self.metrics.check()
        self.clock.restart("checkpoint")
        spent = self.clock.spent()
        averaged = self.ema.whole()
        check_finite(averaged, self.step)
        save_in_parts(averaged, self.output / "unet", torch.float16)
        about = {"pictures": self.seen, "steps": self.step, "seconds": round(spent, 1)}
        write_json(self.output / "run.json", self.settings | about)
        save_state(self.state, self.step, spent, self.learner)

    @torch.inference_mode()
    def draw(self) -> None:
        """Draw the prompts with the averaged weights, always from the same seeds."""
        self.clock.restart("sample")
        vae, text_encoder = self.vae.to(self.device), self.text_encoder.to(self.device)
        unet = self.ema.whole()
        pipe = Pipeline(vae, text_encoder, self.tokenizer, unet, self.scheduler, DEFAULTS)
        images = cast("list[Image.Image]", pipe(list(PROMPTS), seed=0).images)
        sheet = image_grid(images, columns=8)
        partial = self.output / ".samples.partial"
        sheet.save(partial, "WEBP", quality=90)
        partial.replace(self.output / "samples.webp")


def state_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder of the checkpoints."""
    return arguments.state or arguments.output


def start_folder(start: Path | None) -> str:
    """Return the folder of weights that `--start` names: a U-Net's, or that of a run or model."""
    if start is None:
        return ""
    return str(start / "unet" if (start / "unet").is_dir() else start)


def device_name(device: torch.device) -> str:
    """Return the name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def estimate(row: dict[str, Any]) -> str:
    """Describe how long this CPU would take to train the network well."""
    days = ENOUGH / row["pictures_per_second"] / 86400
    return (
        f"there is no CUDA device: this CPU trains {row['pictures_per_second']:.0f} pictures a "
        f"second, so {ENOUGH:,} of them take {days:.0f} days"
    )


def run_training(arguments: argparse.Namespace, began: float) -> None:
    """Train by the command line; `began` is what ``time.monotonic`` returned at its start.

    Raises KeyboardInterrupt after a checkpoint if Ctrl-C or SIGTERM has ended the run.
    """
    check_counts(arguments, "batch_size", "workers", "threads", "capacity", "first", "reuse")
    if not arguments.minutes > 0:
        raise ArgumentError(f"--minutes is {arguments.minutes}; it must be above 0")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    with only_run_in(state_folder(arguments)), stopping() as stop_requested:
        if arguments.train == "adapters":
            train_adapters(adapters_task(arguments), began, stop_requested)
        else:
            train_unet(arguments, began, stop_requested)
        if stop_requested():
            raise KeyboardInterrupt


def train_unet(arguments: argparse.Namespace, began: float, stop: Callable[[], bool]) -> None:
    """Train the U-Net, printing the log."""
    trainer = TimedTrainer(arguments)
    trainer.resume(began)
    for number, row in enumerate(trainer.train(arguments.compile, stop)):
        if number == 0 and trainer.device.type == "cpu":
            notify(estimate(row))
        print(json.dumps(row), flush=True)


def adapters_task(arguments: argparse.Namespace) -> Task:
    """Return what `--train adapters` is to do."""
    return Task(
        arguments.output,
        state_folder(arguments),
        arguments.weights,
        arguments.archives,
        60 * arguments.minutes,
        make_plan(arguments, torch.device(arguments.device)).workers,
        arguments.seed,
    )


def parser() -> Parser:
    """Build the parser of the command line."""
    cuda = torch.cuda.is_available()
    parser = Parser(
        prog="python -m tools.builtin_model.train",
        description=__doc__.splitlines()[0],
        epilog=EXIT_CODES,
    )
    add = parser.add_argument
    add("--minutes", type=float, required=True, help="length of the run, all of it included")
    add("--train", choices=("unet", "adapters"), default="unet", help="what (default: unet)")
    add("--output", type=Path, default=Path("runs/builtin"), help="folder of the results")
    add("--state", type=Path, help="folder of the large checkpoints (default: OUTPUT)")
    add("--start", type=Path, help="begin with the U-Net of this run, model or folder")
    add("--network", type=Path, default=HERE / "unet.json", help="config.json of the U-Net")
    add("--weights", type=Path, default=Path("weights"), help="VAE, text encoder, tokenizer")
    add("--archives", type=Path, default=Path("data/npm"), help="the icon sets' packages")
    add("--device", default="cuda" if cuda else "cpu", help="(default: CUDA if available)")
    add("--batch-size", type=int, help="pictures a step (default: by the device)")
    add("--learning-rate", type=float, help="its peak (default: by the device)")
    add("--workers", type=int, help="processes that compose (default: by the device)")
    add("--capacity", type=int, help="pictures kept as latents (default: by the device)")
    add("--first", type=int, help="pictures composed before step 1 (default: by the device)")
    add("--reuse", type=int, help="how often one is drawn, on average (default: by the device)")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="CPU threads of the trainer")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=cuda,
        help="compile the network (default: on CUDA)",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train; returns the exit code."""
    began = time.monotonic()
    arguments = parser().parse_args(argv)
    return run(lambda: run_training(arguments, began), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
