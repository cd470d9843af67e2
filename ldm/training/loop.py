"""The training loop: one for every recipe, on one process or on many.

A run is a folder; the same command resumes it. Everything random in a step depends on (seed, step)
alone, and each process takes its share of the batch.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import DistributedType, broadcast
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.config import write_json
from ldm.errors import ArgumentError, LDMError, TrainingError
from ldm.fast.waiting import sleep_beside_others
from ldm.images.files import save_image
from ldm.memory.thrift import keep_one_description
from ldm.training.checkpoint import (
    Learner,
    check_finite,
    checkpoints,
    load_state,
    save_state,
    unwritten,
)
from ldm.training.clock import Clock
from ldm.training.config import TrainConfig, as_json, check_resumable
from ldm.training.curves import draw_curves
from ldm.training.damage import read_settings
from ldm.training.data import step_generator
from ldm.training.ema import EMA
from ldm.training.foreign import check_defaults
from ldm.training.launch import build_accelerator, start_trackers
from ldm.training.leftovers import clear_run
from ldm.training.lock import only_run_in
from ldm.training.metrics import Metrics, append_row, cut_log
from ldm.training.optimizer import build_optimizer, check_optimizer, weights_format
from ldm.training.recipes.base import Recipe
from ldm.training.sharding import choose_units, full_tensor, is_sharded


@dataclass
class State:
    """The state of a run after a step, which the loop yields."""

    step: int  # steps done
    seconds: float  # training time over all sessions
    rate: float  # learning rate of the step
    metrics: dict[str, float]  # filled every ``log_every`` steps
    main: bool  # whether this is the process that prints and saves
    stop: bool = False  # set it to end the run here, with a checkpoint


def train_steps(
    config: TrainConfig, recipe: Recipe, accept_changes: bool = False
) -> Iterator[State]:
    """Run ``recipe`` to ``config.steps``, yielding after every step.

    Resumes the run that the output folder holds; with ``accept_changes``, also under settings
    that make it another run.
    A run that has done these steps is left as it is, with a warning.
    Raises ArgumentError for settings that are not the run's, or fewer steps than it has done, and
    TrainingError when the loss is not finite (the last checkpoint stays as it was), when another
    process works in the folder, and when the disk is full.
    """
    trainer = Trainer(config, recipe)
    with only_run_in(trainer.run) if trainer.main else contextlib.nullcontext():
        if trainer.main:
            clear_run(trainer.run)
        if trainer.is_finished(accept_changes):
            return
        for step in range(trainer.start(), config.steps):
            state = trainer.train_step(step)
            trainer.after_step(state)
            yield state
            if trainer.agree(state.stop):
                trainer.save(state)
                break
        trainer.end()


class Trainer:
    """A run on this process: its training steps, and its logs, samples and checkpoints."""

    def __init__(self, config: TrainConfig, recipe: Recipe) -> None:
        check_defaults()
        if not config.output:
            raise ArgumentError("output is empty; give the folder of the run")
        self.config, self.recipe = config, recipe
        self.run = Path(config.output)
        check_optimizer(config)
        self.accelerator = build_accelerator(config)
        if self.accelerator.device.type == "cpu":
            keep_one_description()
        self.main = self.accelerator.is_main_process
        self.metrics = Metrics()
        self.saved = -1  # steps that the last checkpoint of this session has

    def is_finished(self, accept_changes: bool) -> bool:
        """Whether the folder holds this run with all steps done, which a warning says.

        Raises ArgumentError for settings that are not the run's, and fewer steps than it has done.
        """
        found = checkpoints(self.run)
        if not found:
            return False
        done, steps = int(found[-1].name), self.config.steps
        if steps < done:
            raise ArgumentError(
                f"steps is {steps}, but the run in {self.run} has done {done}; give that many or "
                "more, or another output for a new run"
            )
        check_same_run(self.run, self.config, accept_changes)
        if steps == done and self.main:
            warnings.warn(
                f"the run in {self.run} is finished: {done} of {steps} steps are done; to train it "
                "further, give more steps",
                stacklevel=2,
            )
        return steps == done

    def start(self) -> int:
        """Prepare the recipe, and resume the run in the folder; returns the steps done."""
        config, accelerator, run = self.config, self.accelerator, self.run
        torch.manual_seed(config.seed)
        self.recipe.prepare(accelerator)
        model = self.recipe.model
        shards = accelerator.distributed_type == DistributedType.FSDP
        model.to(memory_format=weights_format(config, shards))
        ema = EMA(model, config.ema_decay, shards)
        choose_units(accelerator, model)
        # As accelerate has it, which imports 40 MB to find that out of a model that is not sharded.
        placed = None if shards else [accelerator.device_placement] * 2
        optimizer = build_optimizer(model, config)
        self.parallel, optimizer = accelerator.prepare(model, optimizer, device_placement=placed)
        ema.follow(model)
        self.recipe.follow(ema.model)
        self.sharded = is_sharded(model)
        if self.sharded and config.optimizer != "adamw":
            raise ArgumentError(
                f"optimizer {config.optimizer!r} needs whole weights; use 'adamw' with FSDP"
            )
        self.learner = Learner(model, ema, optimizer, accelerator.scaler, self.metrics)
        done, spent = load_state(run, self.learner)
        if config.compile:
            model.compile()
        if self.main:
            write_json(run / "config.json", as_json(config))
            cut_log(run, done)
            start_trackers(accelerator, config)
        self.clock = Clock(spent)
        self.clock.leave_out("log", -self.learner.since_row)
        return done

    def train_step(self, step: int) -> State:
        """Update the weights once and average them; ``step`` counts from 0."""
        config, accelerator, optimizer = self.config, self.accelerator, self.learner.optimizer
        sleep_beside_others(accelerator.device)
        rate = config.learning_rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step, group["peak"])
        rank = accelerator.process_index
        torch.manual_seed(step_seed(config.seed, step, rank))  # of dropout
        with enough_memory(step, config):
            batch = self.recipe.batch(step, step_generator(config.seed, step))
        parts = share(batch, rank, accelerator.num_processes, config.gradient_accumulation_steps)
        for i, part in enumerate(parts, 1):
            more = i < len(parts)  # processes exchange their gradients once a step
            with (
                accelerator.no_sync(self.parallel) if more else contextlib.nullcontext(),
                enough_memory(step, config),
            ):
                self.backward(step, part, len(parts))
        self.recipe.after_backward(step)
        norm = self.clip_gradients()
        self.metrics.add({"grad_norm": norm})
        if accelerator.scaler is None:  # it leaves out steps whose gradient overflows
            self.metrics.watch(step + 1, norm)
        optimizer.step()
        optimizer.zero_grad()
        self.learner.ema.update(self.learner.model, step)
        return State(step + 1, self.clock.spent(), rate, {}, self.main)

    def clip_gradients(self) -> Tensor:
        """Scale the gradients down to ``config.max_grad_norm``; return the norm that they had."""
        accelerator, most = self.accelerator, self.config.max_grad_norm
        if accelerator.distributed_type == DistributedType.NO:
            accelerator.unscale_gradients()  # as accelerate does, which imports 40 MB for shards
            return nn.utils.clip_grad_norm_(self.parallel.parameters(), most)
        return full_tensor(accelerator.clip_grad_norm_(self.parallel.parameters(), most))

    def backward(self, step: int, rows: dict[str, Tensor], parts: int) -> None:
        """Add the gradient of one of ``parts`` of this process's batch."""
        device = self.accelerator.device
        rows = {key: to_device(value, device) for key, value in rows.items()}
        with fast_attention(device):  # also of what gradient checkpointing computes again
            with self.accelerator.autocast():
                loss, found = self.recipe.loss(self.parallel, rows)
            self.accelerator.backward(loss / parts)
        self.metrics.add({"loss": loss, **found})
        self.metrics.watch(step + 1, loss)

    def after_step(self, state: State) -> None:
        """Log, draw samples and save a checkpoint, each if it is due.

        Raises TrainingError where the disk is full, or a file stands in the way.
        """
        try:
            self.write_due(state)
        except LDMError:  # some of which are OSErrors
            raise
        except OSError as error:
            raise unwritten(self.run, state.step, error) from error

    def write_due(self, state: State) -> None:
        """Write what is due after a step."""
        config, clock = self.config, self.clock
        last = state.step == config.steps
        if state.step % config.log_every == 0 or last:
            self.metrics.check()
            state.metrics = self.metrics.take(self.accelerator, clock.restart("log"))
        before = clock.spent()  # after the restart, or less than no time would have passed since
        sampled = state.step % config.sample_every == 0 or last
        if sampled:
            self.sample(state)
        if state.metrics and self.main:
            self.log(state)
            if sampled:
                draw_curves(self.run)
        if self.agree(last or clock.since("checkpoint") > 60 * config.checkpoint_minutes):
            self.save(state)
        clock.leave_out("log", clock.spent() - before)  # samples and checkpoints are not training

    def log(self, state: State) -> None:
        """Add a row to ``metrics.jsonl`` and to the trackers."""
        row = {"step": state.step, "seconds": round(state.seconds, 1), "lr": state.rate}
        append_row(self.run, row | state.metrics)
        self.accelerator.log({"lr": state.rate} | state.metrics, state.step)

    @torch.no_grad()
    def sample(self, state: State) -> None:
        """Let the recipe show what the averaged model does: ``run/samples`` and ``run/figures``.

        Where the model is sharded, every process must call it; the main one draws.
        """
        self.metrics.check()
        averaged = self.learner.ema.whole()
        if self.main:
            averaged.to(self.accelerator.device)
            with evaluating(averaged):
                picture, figures = self.recipe.evaluate(averaged)
                self.recipe.figures(averaged, self.run / "figures")
            if picture is not None:
                (self.run / "samples").mkdir(exist_ok=True)
                save_image(picture, self.run / "samples" / f"{state.step:08d}.png", overwrite=True)
            state.metrics |= figures
        if self.sharded:
            averaged.to("cpu")  # where it does not take a whole model's space

    def save(self, state: State) -> None:
        """Write the averaged model, then the checkpoint: a kill in between repeats both.

        Where the model is sharded, every process must call it; the main one writes.
        """
        if self.saved == state.step:
            return
        self.metrics.check()
        averaged = self.learner.ema.whole()
        if self.main:
            check_finite(averaged, state.step)
            try:
                self.recipe.save(averaged, self.run)
            except OSError as error:
                raise unwritten(self.run, state.step, error) from error
        self.learner.since_row = self.clock.since("log")
        save_state(self.run, state.step, state.seconds, self.learner, writes=self.main)
        self.saved = state.step
        self.clock.restart("checkpoint")

    def agree(self, decision: bool) -> bool:
        """Return the main process's decision on all of them, where they must act together."""
        if not self.sharded:
            return decision
        return bool(broadcast(torch.tensor(float(decision), device=self.accelerator.device)))

    def end(self) -> None:
        """Let go of the other processes and the trackers.

        Processes' groups have threads, which must end while the interpreter is there, or they
        abort a process that is done ("terminate called"): so nothing may hold the groups.
        """
        del self.parallel
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()


@contextlib.contextmanager
def enough_memory(step: int, config: TrainConfig) -> Iterator[None]:
    """Raise TrainingError in place of PyTorch's errors for memory that there is not."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = (str(error) or "MemoryError").splitlines()[0]
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and (
            "t allocate memory" not in reason
        ):
            raise
        raise TrainingError(
            f"not enough memory at step {step + 1}, with a batch of {config.batch_size} in "
            f"{config.gradient_accumulation_steps} parts ({reason:.200}); give more "
            "gradient_accumulation_steps, a smaller batch_size or smaller pictures"
        ) from error


def check_same_run(run: Path, config: TrainConfig, accept_changes: bool) -> None:
    """Warn of settings that differ from the run's; raise ArgumentError where they may not."""
    old = read_settings(run, accept_changes)
    changed = {} if old is None else check_resumable(old, config, accept_changes)
    if changed:
        settings = "; ".join(f"{key} was {how}" for key, how in changed.items())
        warnings.warn(f"the run goes on with other settings: {settings}", stacklevel=2)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode: without dropout. Afterwards each part is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def fast_attention(device: torch.device) -> contextlib.AbstractContextManager:
    """Compute the text encoder's masked attention by plain matrix products on the CPU, too.

    See ``ldm.fast.cpu.attend``, which does so for the other networks.
    """
    if device.type != "cpu":
        return contextlib.nullcontext()
    # Despite its name it rules the CPU's path too.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    return sdpa_kernel(SDPBackend.MATH)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of what the network draws in a step: unlike the batch's, by process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def share(
    batch: dict[str, Tensor], rank: int, processes: int, parts: int
) -> list[dict[str, Tensor]]:
    """Return a process's rows of a batch, in equal parts, so that the mean of means is the mean.

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
    """Move a tensor of the CPU to ``device``; CUDA copies what is pinned while it computes."""
    if device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
