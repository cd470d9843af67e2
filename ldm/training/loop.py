"""The training loop: one for every recipe, on one process or on many.

A run is a folder; the same command goes on where it stopped. Every step draws its batch from
(seed, step) alone, and each process takes its share of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.config import write_json
from ldm.errors import LDMError
from ldm.training.checkpoint import load_state, save_state
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.ema import EMA
from ldm.training.optimizer import build_optimizer


class TrainingError(LDMError):
    """The run cannot go on; the message names the step."""


class Recipe(Protocol):
    """What differs between trainings: data, model and objective."""

    model: nn.Module  # all that is trained; its forward is what runs on many processes

    def prepare(self, accelerator: Accelerator) -> None:
        """Anything to compute before the first step, such as cached latents."""

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The whole batch of a step, over all processes, on the CPU."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and scalars to log."""

    def evaluate(self, model: nn.Module) -> tuple[Image.Image | None, dict[str, float]]:
        """A picture of what the averaged model does, and figures on held-out data."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the averaged model as a diffusers folder."""


@dataclass
class State:
    """What the loop yields after each step."""

    step: int  # steps done
    seconds: float  # training time over all sessions
    rate: float  # learning rate of the step
    metrics: dict[str, float]  # filled every ``log_every`` steps
    main: bool  # whether this is the process that tells and saves


def fast_attention(device: torch.device) -> contextlib.AbstractContextManager:
    """On the CPU, attention by plain matrix products.

    The fused kernel's backward pass is ten times slower there: 39.7 against 5.0 ms for bf16
    (64, 3, 64 × 77, 64) on one core with AMX.
    """
    if device.type != "cpu":
        return contextlib.nullcontext()
    # Despite its name it rules the CPU's path too.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    return sdpa_kernel(SDPBackend.MATH)


def train(config: TrainConfig, recipe: Recipe) -> Iterator[State]:
    """Run ``recipe`` to ``config.steps``, yielding after every step.

    Resumes the run that the output folder holds.
    Raises TrainingError when the loss is not finite; the last checkpoint stays as it was.
    """
    run = Path(config.output)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    processes, rank = accelerator.num_processes, accelerator.process_index
    if config.batch_size % processes:
        raise TrainingError(
            f"batch_size {config.batch_size} cannot be shared among {processes} processes"
        )
    torch.manual_seed(config.seed)

    model = recipe.model.to(memory_format=torch.channels_last)
    ema = EMA(model, config.ema_decay)
    optimizer = build_optimizer(model, config)
    start, spent = load_state(run, model, ema, optimizer)
    recipe.prepare(accelerator)
    parallel, optimizer = accelerator.prepare(model, optimizer)
    ema.model.to(accelerator.device)
    if accelerator.is_main_process:
        write_json(run / "config.json", asdict(config))

    def finish(step: int, seconds: float) -> None:
        save_state(run, step, seconds, model, ema, getattr(optimizer, "optimizer", optimizer))
        recipe.save(ema.model, run)

    began = saved = time.monotonic()
    for step in range(start, config.steps):
        rate = config.learning_rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = recipe.batch(step, step_generator(config.seed, step))
        share = {
            key: value.chunk(processes)[rank].to(accelerator.device) for key, value in batch.items()
        }
        with accelerator.autocast(), fast_attention(accelerator.device):
            loss, metrics = recipe.loss(parallel, share)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(parallel.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step)

        seconds = spent + time.monotonic() - began
        state = State(step + 1, seconds, rate, {}, accelerator.is_main_process)
        last = state.step == config.steps
        if state.step % config.log_every == 0 or last:
            found = {"loss": loss.detach(), "grad_norm": norm, **metrics}
            state.metrics = {
                key: float(accelerator.reduce(value, "mean")) for key, value in found.items()
            }
            if not math.isfinite(state.metrics["loss"]):
                raise TrainingError(
                    f"the loss is {state.metrics['loss']} at step {state.step}; lower "
                    "learning_rate, then run the same command to go on from the last checkpoint"
                )
        if accelerator.is_main_process:
            if state.step % config.sample_every == 0 or last:
                state.metrics |= evaluate(recipe, ema, run, state.step)
            if state.metrics:
                log(
                    run,
                    {
                        "step": state.step,
                        "seconds": round(state.seconds, 1),
                        "lr": rate,
                        **state.metrics,
                    },
                )
            if last or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                finish(state.step, state.seconds)
                saved = time.monotonic()
        yield state
    accelerator.end_training()


@torch.no_grad()
def evaluate(recipe: Recipe, ema: EMA, run: Path, step: int) -> dict[str, float]:
    """Let the recipe show what the averaged model does; the picture goes to ``run/samples``."""
    picture, figures = recipe.evaluate(ema.model)
    if picture is not None:
        (run / "samples").mkdir(exist_ok=True)
        picture.save(run / "samples" / f"{step:08d}.png")
    return figures


def log(run: Path, row: dict[str, Any]) -> None:
    """Append a row to ``run/metrics.jsonl``."""
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
