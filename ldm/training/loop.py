"""The training loop: one for every recipe, on one process or on many.

A run is a folder; the same command goes on where it stopped. Everything random in a step depends
on (seed, step) alone, and each process takes its share of the batch.
"""

from __future__ import annotations

import contextlib
import gc
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.config import read_json, write_json
from ldm.errors import ArgumentError, TrainingError
from ldm.training.checkpoint import (
    Learner,
    check_finite,
    checkpoints,
    load_state,
    save_state,
    unwritten,
)
from ldm.training.config import TrainConfig, as_json, check_resumable
from ldm.training.curves import draw_curves
from ldm.training.data import step_generator
from ldm.training.ema import EMA
from ldm.training.launch import build_accelerator, start_trackers
from ldm.training.lock import only_run_in
from ldm.training.metrics import Metrics, cut_log, log
from ldm.training.optimizer import build_optimizer
from ldm.training.sharding import is_sharded, whole


class Recipe(Protocol):
    """What differs between trainings: data, model and objective.

    A recipe may also have ``figures(model, folder)``, which draws more pictures of the averaged
    model into a folder at each sampling, and ``example(count)``, a batch of so many rows to be had
    before ``prepare``, for the memory that ``--dry-run`` tells.
    """

    model: nn.Module  # all that is trained; its forward is what runs on many processes

    def prepare(self, accelerator: Accelerator) -> None:
        """Anything to compute before the first step, such as cached latents."""

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The whole batch of a step, over all processes, on the CPU: tensors of B rows."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, a mean over the rows, and scalars to log."""

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
    stop: bool = False  # set it to end the run here, with a checkpoint


def train(config: TrainConfig, recipe: Recipe, accept_changes: bool = False) -> Iterator[State]:
    """Run ``recipe`` to ``config.steps``, yielding after every step.

    Resumes the run that the output folder holds; with ``accept_changes``, also under settings
    that make it another run.
    Raises ArgumentError for settings that are not the run's, and TrainingError when the loss is
    not finite (the last checkpoint stays as it was), when another process works in the folder,
    and when the disk is full.
    """
    run = Path(config.output)
    accelerator = build_accelerator(config)
    main, rank, processes = (
        accelerator.is_main_process,
        accelerator.process_index,
        accelerator.num_processes,
    )
    with only_run_in(run) if main else contextlib.nullcontext():
        if checkpoints(run):
            check_same_run(run, config, accept_changes)
        torch.manual_seed(config.seed)
        recipe.prepare(accelerator)
        model = recipe.model.to(memory_format=torch.channels_last)
        ema = EMA(model, config.ema_decay)
        parallel, optimizer = accelerator.prepare(model, build_optimizer(model, config))
        ema.follow(model)
        sharded = is_sharded(model)
        if sharded and config.optimizer == "muon":
            raise ArgumentError("optimizer 'muon' needs whole matrices; use 'adamw' with FSDP")
        learner = Learner(model, ema, optimizer, accelerator.scaler)
        start, spent = load_state(run, learner)
        if config.compile:
            model.compile()
        if main:
            write_json(run / "config.json", as_json(config))
            cut_log(run, start)
            start_trackers(accelerator, config)

        metrics = Metrics()
        began = saved = logged = time.monotonic()
        for step in range(start, config.steps):
            rate = config.learning_rate_at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(step_seed(config.seed, step, rank))  # of dropout
            batch = recipe.batch(step, step_generator(config.seed, step))
            parts = share(batch, rank, processes, config.gradient_accumulation_steps)
            for i, part in enumerate(parts, 1):
                part = {key: to_device(value, accelerator.device) for key, value in part.items()}
                more = i < len(parts)  # processes exchange their gradients once a step
                with accelerator.no_sync(parallel) if more else contextlib.nullcontext():
                    with accelerator.autocast(), fast_attention(accelerator.device):
                        loss, found = recipe.loss(parallel, part)
                    accelerator.backward(loss / len(parts))
                metrics.add({"loss": loss, **found})
                metrics.watch(step + 1, loss)
            norm = whole(accelerator.clip_grad_norm_(parallel.parameters(), config.max_grad_norm))
            metrics.add({"grad_norm": norm})
            if accelerator.scaler is None:  # it leaves out steps whose gradient overflows
                metrics.watch(step + 1, norm)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(model, step)

            now = time.monotonic()
            state = State(step + 1, spent + now - began, rate, {}, main)
            last = state.step == config.steps
            if state.step % config.log_every == 0 or last:
                metrics.check()
                state.metrics = metrics.take(accelerator, now - logged)
                logged = now
            sample = state.step % config.sample_every == 0 or last
            if sample:
                metrics.check()
                shown = ema.whole()
                if main:
                    found = show(recipe, shown.to(accelerator.device), run, state.step)
                    state.metrics |= found
                if sharded:
                    shown.to("cpu")  # where it does not take a whole model's space
            if state.metrics and main:
                row = {"step": state.step, "seconds": round(state.seconds, 1), "lr": rate}
                log(run, row | state.metrics)
                accelerator.log({"lr": rate} | state.metrics, state.step)
                if sample:
                    draw_curves(run)
            due = last or now - saved > 60 * config.checkpoint_minutes
            if agree(due, accelerator) if sharded else due:
                metrics.check()
                keep(recipe, learner, run, state)
                saved = time.monotonic()
            logged += time.monotonic() - now  # pictures and checkpoints are not training
            yield state
            if agree(state.stop, accelerator) if sharded else state.stop:
                if saved < now:
                    metrics.check()
                    keep(recipe, learner, run, state)
                break
        # Processes' groups have threads, which must end while the interpreter is there, or they
        # abort a process that is done ("terminate called"): so nothing may hold the groups.
        parallel = loss = None
        accelerator.free_memory()
        gc.collect()
        accelerator.end_training()


def check_same_run(run: Path, config: TrainConfig, accept_changes: bool) -> None:
    """Warn of settings that differ from the run's; raise ArgumentError where they may not."""
    changed = check_resumable(read_json(run / "config.json"), config, accept_changes)
    if changed:
        told = "; ".join(f"{key} was {how}" for key, how in changed.items())
        warnings.warn(f"the run goes on with other settings: {told}", stacklevel=2)


def fast_attention(device: torch.device) -> contextlib.AbstractContextManager:
    """On the CPU, also the text encoder's masked attention by plain matrix products.

    See ``ldm.fast.cpu.attend``, which does so for the other networks.
    """
    if device.type != "cpu":
        return contextlib.nullcontext()
    # Despite its name it rules the CPU's path too.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    return sdpa_kernel(SDPBackend.MATH)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of what the network itself draws in a step, unlike the batch's and other processes'."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def share(
    batch: dict[str, Tensor], rank: int, processes: int, parts: int
) -> list[dict[str, Tensor]]:
    """A process's rows of a batch, in equal parts, so that the mean of means is the mean.

    Raises TrainingError for a batch that cannot be divided so.
    """
    for key, value in batch.items():
        if len(value) % (processes * parts):
            raise TrainingError(
                f"a batch of {len(value)} ({key}) cannot be shared evenly among {processes} "
                f"processes with {parts} parts each; change batch_size or "
                "gradient_accumulation_steps"
            )
    own = {key: value.chunk(processes)[rank].chunk(parts) for key, value in batch.items()}
    return [{key: value[i] for key, value in own.items()} for i in range(parts)]


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``; CUDA copies what is pinned while it computes."""
    if device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


@torch.no_grad()
def show(recipe: Recipe, model: nn.Module, run: Path, step: int) -> dict[str, float]:
    """Let the recipe show what the averaged model does: ``run/samples`` and ``run/figures``."""
    picture, figures = recipe.evaluate(model)
    if picture is not None:
        (run / "samples").mkdir(exist_ok=True)
        picture.save(run / "samples" / f"{step:08d}.png")
    if hasattr(recipe, "figures"):
        (run / "figures").mkdir(exist_ok=True)
        recipe.figures(model, run / "figures")
    return figures


def keep(recipe: Recipe, learner: Learner, run: Path, state: State) -> None:
    """Write the averaged model, then the checkpoint: a kill in between repeats both.

    Where the model is sharded, every process must call it; the main one writes.
    """
    shown = learner.ema.whole()
    if state.main:
        check_finite(shown, state.step)
        try:
            recipe.save(shown, run)
        except OSError as error:
            raise unwritten(run, state.step, error) from error
    save_state(run, state.step, state.seconds, learner, writes=state.main)


def agree(decision: bool, accelerator: Accelerator) -> bool:
    """The main process's decision, on all of them."""
    return bool(broadcast(torch.tensor(float(decision), device=accelerator.device)))
