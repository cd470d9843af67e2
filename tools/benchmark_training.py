"""Training steps a second of the built-in model's U-Net, beside a plain diffusers loop.

    python tools/benchmark_training.py --rounds 10

Ours is `ldm.training.loop` as `ldm-train` runs it; theirs is what one writes with diffusers:
`UNet2DConditionModel`, `torch.optim.AdamW` as it comes, gradients clipped, `EMAModel`. Both learn
v-prediction from the same weights, the same latents, texts' states, noise and times. The loss and
the gradient of the first step are compared before anything is timed. Then the loops take turns, a
step each after a warm-up, and the shortest step of each counts; the spread, (median − shortest) /
shortest, tells how much the machine was disturbed: where that is much, trust the CPU time. Theirs
runs in the same precision and, as diffusers does unless it is told otherwise, in float32. Needs
diffusers.
"""

import argparse
import copy
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.cli.common import EXIT_CODES, Parser, check_counts, run
from ldm.config import SchedulerConfig, UNetConfig
from ldm.errors import LDMError
from ldm.scheduler import DDPMScheduler
from ldm.training.config import TrainConfig, tomllib
from ldm.training.data import step_generator
from ldm.training.loop import train
from ldm.unet import UNet

ROOT = Path(__file__).parents[1]
TOKENS = 77
BETAS, WEIGHT_DECAY, RATE, NORM = (0.9, 0.999), 0.01, 1e-4, 1.0
LIKE = {"no": 1e-4, "bf16": 3e-2}  # relative difference of loss and gradient that is let pass


class Cached:
    """The recipe of ldm/training/recipes/latent.py, with made-up latents and texts' states."""

    def __init__(self, settings: dict, batch_size: int) -> None:
        torch.manual_seed(0)
        self.model = UNet(UNetConfig.from_dict(settings["model"]))
        self.scheduler = DDPMScheduler(SchedulerConfig.from_dict(settings["options"]["scheduler"]))
        size, width = settings["model"]["sample_size"], settings["model"]["cross_attention_dim"]
        self.x0 = torch.randn(batch_size, 4, size, size)
        self.context = torch.randn(batch_size, TOKENS, width)

    def prepare(self, accelerator: object) -> None:
        """Nothing to do."""

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        t = torch.randint(1000, (len(self.x0),), generator=generator)
        noise = torch.randn(self.x0.shape, generator=generator)
        return {"x0": self.x0, "noise": noise, "t": t, "context": self.context}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x0, noise, t = batch["x0"], batch["noise"], batch["t"]
        x_t = self.scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        error = model(x_t, t, batch["context"]).float() - self.scheduler.target(x0, noise, t)
        return error.square().mean(), {}

    def evaluate(self, model: nn.Module) -> tuple[None, dict[str, float]]:
        return None, {}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Nothing to keep."""


class Theirs:
    """A plain loop of diffusers' parts, on the same weights."""

    def __init__(self, recipe: Cached, settings: dict, precision: str) -> None:
        import diffusers
        from diffusers.training_utils import EMAModel

        self.recipe, self.precision, self.steps = recipe, precision, 0
        self.model = diffusers.UNet2DConditionModel.from_config(recipe.model.config.to_dict())
        self.model.load_state_dict(copy.deepcopy(recipe.model.state_dict()))
        values = {k: v for k, v in settings["options"]["scheduler"].items() if k[0] != "_"}
        self.scheduler = diffusers.DDPMScheduler.from_config(values)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        self.ema = EMAModel(self.model.parameters())

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x0, noise, t = batch["x0"], batch["noise"], batch["t"]
        x_t = self.scheduler.add_noise(x0, noise, t)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            prediction = self.model(x_t, t, batch["context"]).sample
        target = self.scheduler.get_velocity(x0, noise, t)
        return nn.functional.mse_loss(prediction.float(), target)

    def step(self) -> None:
        """One optimizer step."""
        loss = self.loss(self.recipe.batch(self.steps, step_generator(0, self.steps)))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        self.steps += 1


def ours(recipe: Cached, batch_size: int, precision: str, folder: str) -> Iterator[object]:
    """Our loop; one step for each ``next``."""
    never = 10**9
    config = TrainConfig(
        recipe="",
        data="",
        output=folder,
        steps=never,
        batch_size=batch_size,
        learning_rate=RATE,
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=NORM,
        mixed_precision=precision,
        checkpoint_minutes=never,
        sample_every=never,
        log_every=never,
    )
    return train(config, recipe)


def compare(recipe: Cached, theirs: Theirs) -> str:
    """The first step's loss and gradient of both. Raises LDMError where they are not alike."""
    batch = recipe.batch(0, step_generator(0, 0))
    with torch.autocast("cpu", torch.bfloat16, enabled=theirs.precision == "bf16"):
        loss = recipe.loss(recipe.model, batch)[0]
    other = theirs.loss(batch)
    loss.backward(), other.backward()
    pairs = zip(recipe.model.named_parameters(), theirs.model.named_parameters(), strict=True)
    scale = max(p.grad.abs().max() for p in theirs.model.parameters())
    worst = max(
        float((a.grad - dict(theirs.model.named_parameters())[name].grad).abs().max() / scale)
        for (name, a), _ in pairs
    )
    for model in (recipe.model, theirs.model):
        model.zero_grad()
    away = abs(float(loss) / float(other) - 1)
    if max(away, worst) > LIKE[theirs.precision]:
        raise LDMError(f"the loops do not compute the same: loss {away:.1e}, gradient {worst:.1e}")
    return f"first loss {float(loss):.5f}, theirs {float(other):.5f}; gradients within {worst:.1e}"


def race(
    steps: dict[str, Callable[[], object]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each step, by the clock and of the processor, in turns, after two to warm up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            wall, processor = time.perf_counter(), time.process_time()
            step()
            if turn >= 2:
                taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return taken


def benchmark(arguments: argparse.Namespace) -> None:
    """Compare, measure and print a table."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    check_counts(arguments, "rounds", "threads", "batch_size")
    torch.set_num_threads(arguments.threads)
    settings = tomllib.loads((ROOT / "configs/train/latent.toml").read_text(encoding="utf-8"))
    recipe = Cached(settings, arguments.batch_size)
    same = Theirs(recipe, settings, arguments.precision)
    plain = Theirs(recipe, settings, "no")
    print(f"{arguments.precision}: {compare(recipe, same)}")
    print(
        f"batch {arguments.batch_size}, {arguments.threads} thread(s), load average "
        f"{os.getloadavg()[0]:.1f}, torch {torch.__version__}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        loop = ours(recipe, arguments.batch_size, arguments.precision, folder)
        steps = {
            f"ldm, {arguments.precision}": lambda: next(loop),
            f"diffusers, {arguments.precision}": same.step,
            "diffusers, float32 (its default)": plain.step,
        }
        taken = race(steps, arguments.rounds)
        loop.close()
    print("| loop | shortest step, s | spread | examples/s | ldm is faster by | CPU s | by CPU |")
    print("|---|---|---|---|---|---|---|")
    first = None
    for name, seconds in taken.items():
        walls, processors = (list(column) for column in zip(*seconds, strict=True))
        wall, processor = min(walls), min(processors)
        first = first or (wall, processor)
        print(
            f"| {name} | {wall:.3f} | {statistics.median(walls) / wall - 1:.0%} | "
            f"{arguments.batch_size / wall:.1f} | {wall / first[0]:.2f} | "
            f"{processor:.3f} | {processor / first[1]:.2f} |"
        )


def main() -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each (default: 10)")
    parser.add_argument("--batch-size", type=int, default=64, help="latents a step (default: 64)")
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16", help="of ours")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()
    return run(lambda: benchmark(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
