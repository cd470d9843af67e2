"""Train the built-in model's U-Net from nothing, on pictures composed while it learns.

    python -m tools.builtin_model.train --minutes 9

One command for a CUDA GPU (minutes) and for CPUs (days). Worker processes compose pictures of the
icon sets and their captions; the device encodes them and keeps the latest in a reservoir, from
which batches are drawn. The learning rate follows the time: it is at its end when the minutes are.
Run the same command to resume a run that was ended: it loses at most the last minute. `--start`
begins with the weights of another run, so that several short runs add up.

OUTPUT has `unet/` (the averaged weights in parts of at most 15 MB), `samples.webp`,
`metrics.jsonl` and `run.json`; STATE has `checkpoints/`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoints.folder import load_component
from ldm.cli.common import EXIT_CODES, Parser, check_counts, notify, run
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
from ldm.training.metrics import Metrics, cut_log, log
from ldm.training.objectives import simple_error
from ldm.training.optimizer import Muon
from ldm.training.warm_start import new_unet
from ldm.vae import AutoencoderKL
from tools.builtin_model.parts import save_in_parts
from tools.builtin_model.reservoir import Reservoir
from tools.builtin_model.supply import BLOCK, Source, Supply

HERE = Path(__file__).parent
SIZE = 128  # px of a picture's side
CAPTION_DROPOUT = 0.1
LOGIT_MEAN, LOGIT_STD = -0.4, 1.0  # of the times: middle levels of noise, where shapes are learnt
WARMUP = 200  # steps of linear rise
DECAY_FROM = 0.5  # share of the time from which the rate falls, in a line to 0
EMA_DECAY = 0.998
MAX_GRAD_NORM = 1.0
REUSE = 3  # how often a picture is drawn from the reservoir, on average, if the workers keep up
LOG_SECONDS, CHECKPOINT_SECONDS = 10, 60
SAMPLINGS = 4  # contact sheets a run
ENOUGH = 20_000_000  # pictures that this network wants; for the estimate on a CPU
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
    """What depends on the device."""

    batch_size: int
    learning_rate: float
    workers: int
    capacity: int  # pictures in the reservoir
    first: int  # pictures in it before the first step


def plan(arguments: argparse.Namespace, device: torch.device) -> Plan:
    """The device's defaults, and what the command line says in their place."""
    cores = os.cpu_count() or 1
    if device.type == "cuda":
        found = (512, 1.5e-3, max(cores - 1, 1), 300_000, 16_384)
    else:
        found = (64, 1e-3, 1, 20_000, 1024)
    names = ("batch_size", "learning_rate", "workers", "capacity", "first")
    given = (getattr(arguments, name, None) for name in names)
    return Plan(*(g if g is not None else f for g, f in zip(given, found, strict=True)))


class TimedTrainer:
    """The U-Net, what it learns from, and the state of its training.

    Not a recipe of ``ldm.training.loop``: there, batches and learning rates follow from the step,
    so that a run resumes bit-identical; here, they follow from the time and from what the workers
    have composed until then.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output: Path = arguments.output
        self.state: Path = arguments.state or arguments.output
        self.seconds = 60 * arguments.minutes
        self.device = torch.device(arguments.device)
        self.plan = plan(arguments, self.device)
        self.batch_size = self.plan.batch_size
        weights: Path = arguments.weights
        self.vae = adapt_to_cpu(load_component(AutoencoderKL, weights / "vae", torch.float32))
        self.text_encoder = load_component(CLIPTextEncoder, weights / "text_encoder", torch.float32)
        self.tokenizer = CLIPTokenizer.from_pretrained(weights / "tokenizer")
        scheduler = weights / "scheduler" / "scheduler_config.json"
        self.scheduler = DDPMScheduler(SchedulerConfig.from_file(scheduler))
        self.source = Source(arguments.archives, weights / "tokenizer", SIZE, arguments.seed)

        torch.manual_seed(arguments.seed)
        start = start_folder(arguments.start)
        unet = new_unet(UNetConfig.from_file(arguments.network), start)
        self.unet = unet.to(self.device, memory_format=torch.channels_last)
        self.settings = {
            "network": json.loads(json.dumps(unet.config.to_dict())),  # with lists for tuples
            "start": start,
            "seed": arguments.seed,
            "device": device_name(self.device),
        }
        optimizer = Muon(self.unet.parameters(), lr=self.plan.learning_rate)
        ema = EMA(self.unet, EMA_DECAY)
        self.learner = Learner(self.unet, ema, optimizer)
        self.step = self.seen = 0  # of this run
        self.composed = 0  # pictures by the workers of this session
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
        self.learner.ema.update(self.unet, self.step)
        self.step += 1
        self.seen += self.batch_size
        self.metrics.add({"loss": loss, "grad_norm": norm})
        self.metrics.watch(self.step, loss)
        self.metrics.watch(self.step, norm)

    def after_step(self) -> dict[str, Any] | None:
        """Log, save a checkpoint and draw samples, each where it is due; returns a row of the log.

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
        """Train until the minutes end; yields the figures of each ten seconds."""
        self.times = torch.Generator().manual_seed(self.settings["seed"] + self.step)
        torch.manual_seed(self.settings["seed"] + self.step)
        if compiled:
            self.unet.compile()
        empty = torch.tensor(self.tokenizer([""]))[0]
        parts = (self.vae, self.text_encoder, empty, SIZE, self.plan.capacity, self.device)
        reservoir = Reservoir(*parts)
        with Supply(self.source, self.plan.workers, self.state / "pictures") as supply:
            while reservoir.count < self.plan.first and not stop():
                if block := supply.take(timeout=1.0):
                    reservoir.put(*block)
            first_seen = self.seen
            for name in ("log", "checkpoint", "sample"):
                self.clock.restart(name)
            while self.share() < 1 and not stop():
                wanted = self.plan.first + (self.seen - first_seen) / REUSE
                while reservoir.count + BLOCK <= wanted and (block := supply.take()):
                    reservoir.put(*block)
                self.try_step(reservoir)
                self.composed = reservoir.count
                if row := self.after_step():
                    yield row
            if self.metrics.sums:
                yield self.log()
        self.save()
        self.draw()

    def try_step(self, reservoir: Reservoir) -> None:
        """Run ``train_step``; where the device's memory is short, halve the batch from now on."""
        while True:
            try:
                return self.train_step(reservoir)
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
        log(self.output, row)
        return row

    def save(self) -> None:
        """Write the averaged weights and the checkpoint."""
        self.metrics.check()
        self.clock.restart("checkpoint")
        spent = self.clock.spent()
        averaged = self.learner.ema.whole()
        check_finite(averaged, self.step)
        save_in_parts(averaged, self.output / "unet", torch.float16)
        about = {"pictures": self.seen, "steps": self.step, "seconds": round(spent, 1)}
        write_json(self.output / "run.json", self.settings | about)
        save_state(self.state, self.step, spent, self.learner)

    @torch.inference_mode()
    def draw(self) -> None:
        """Draw the prompts with the averaged weights, always from the same seeds."""
        self.clock.restart("sample")
        parts = [part.to(self.device) for part in (self.vae, self.text_encoder)]
        unet = self.learner.ema.whole()
        pipe = Pipeline(parts[0], parts[1], self.tokenizer, unet, self.scheduler, DEFAULTS)
        sheet = image_grid(pipe(list(PROMPTS), seed=0).images, columns=8)
        partial = self.output / ".samples.partial"
        sheet.save(partial, "WEBP", quality=90)
        os.replace(partial, self.output / "samples.webp")


def start_folder(start: Path | None) -> str:
    """The folder of weights that `--start` means: a U-Net's own, or that in a run or model."""
    if start is None:
        return ""
    return str(start / "unet" if (start / "unet").is_dir() else start)


def device_name(device: torch.device) -> str:
    """What the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def estimate(row: dict[str, Any]) -> str:
    """How long a CPU would take for what the network wants."""
    days = ENOUGH / row["pictures_per_second"] / 86400
    return (
        f"there is no CUDA device: this CPU trains {row['pictures_per_second']:.0f} pictures a "
        f"second, so {ENOUGH:,} of them take {days:.0f} days"
    )


def train(arguments: argparse.Namespace, began: float) -> None:
    """Everything that the command does."""
    check_counts(arguments, "batch_size", "workers", "threads", "capacity", "first")
    if not arguments.minutes > 0:
        raise ArgumentError(f"--minutes is {arguments.minutes}; it must be above 0")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    state = arguments.state or arguments.output
    state.mkdir(parents=True, exist_ok=True)
    with only_run_in(state), stopping() as stop_requested:
        trainer = TimedTrainer(arguments)
        trainer.resume(began)
        estimated = trainer.device.type == "cuda"
        for row in trainer.train(arguments.compile, stop_requested):
            if not estimated:
                notify(estimate(row))
                estimated = True
            print(json.dumps(row), flush=True)
        if stop_requested():
            raise KeyboardInterrupt


def parser() -> Parser:
    """The command line."""
    cuda = torch.cuda.is_available()
    parser = Parser(
        prog="python -m tools.builtin_model.train",
        description=__doc__.splitlines()[0],
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--minutes", type=float, required=True, help="length of the run, all of it included")
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
    return run(lambda: train(arguments, began), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
