"""The memory and the data of a run, for ``--dry-run``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ldm.training.checkpointing import everything_kept, is_checkpointed, keeps_all
from ldm.training.config import TrainConfig
from ldm.training.loop import fast_attention
from ldm.training.optimizer_state import moments_size
from ldm.training.recipes.base import Recipe


def describe_run(
    config: TrainConfig, recipe: Recipe, processes: int = 1, activations: bool = True
) -> Iterator[str]:
    """Yield lines on the size of the model, of the data, and of the memory of one process.

    activations: whether to count them, for which the network computes an example or two.
    """
    weights = size_of(recipe.model)
    count = sum(parameter.numel() for parameter in recipe.model.parameters())
    yield f"model: {count / 1e6:.2f}M parameters to train"
    learnt, held_out = recipe.examples()
    if learnt:
        yield f"data: {config.data}: {learnt} examples to learn from, {held_out} held out"
        yield f"run: {config.steps * config.batch_size / learnt:.1f} times through the data"
    else:
        yield f"data: {config.data}: read in order, {held_out} examples held out"
    moments = moments_size(recipe.model, config)
    averaged = config.ema_decay > 0
    state = (3 if averaged else 2) * weights + moments
    each = "weights, gradients, their average" if averaged else "weights, gradients"
    yield (
        f"memory: {_gb(state)} for {each} ({_gb(weights)} each) "
        f"and the optimizer's moments ({_gb(moments)})"
    )
    if held := sum(size_of(network) for network in recipe.frozen):
        yield f"memory: {_gb(held)} for weights that do not learn"
    if activations:
        yield f"memory: {describe_activations(config, recipe, processes)}"
    yield f"disk: {_gb((1 + averaged) * weights + moments)} for each of two checkpoints"


def describe_activations(config: TrainConfig, recipe: Recipe, processes: int) -> str:
    """Return how much the activations of one process take, in words."""
    rows = config.batch_size // (processes * config.gradient_accumulation_steps)
    kept = kept_activations(config, recipe, rows)
    if kept is None:
        return "activations are not counted, this recipe cannot tell before it begins"
    return f"{_gb(kept)} for the activations of {rows} examples at once"


def kept_activations(config: TrainConfig, recipe: Recipe, rows: int) -> int | None:
    """Return the bytes that a forward pass over ``rows`` keeps for the backward pass.

    It is measured on one example and on two, as it grows linearly. None for a recipe without
    examples.
    """
    examples = [batch for count in (1, 2) if (batch := recipe.example(count)) is not None]
    if not examples:
        return None
    one, two = (_kept(config, recipe, batch) for batch in examples)
    return one + (two - one) * (rows - 1)


def _kept(config: TrainConfig, recipe: Recipe, batch: dict[str, Tensor]) -> int:
    cpu, bf16 = torch.device("cpu"), config.mixed_precision != "no"
    with (
        counted(recipe.model, *recipe.frozen) as count,
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        fast_attention(cpu),
    ):
        loss, _ = recipe.loss(recipe.model, batch)
        del loss
    return count.total


class Count:
    """Counts the memory that autograd keeps.

    Of blocks with gradient checkpointing these are the inputs, and once what the largest keeps
    while the backward pass computes it again.
    """

    def __init__(self, own: set[int]) -> None:
        """own: the storages of parameters, which are no activations."""
        self.own = own
        self.kept: dict[int, int] = {}  # bytes of each storage
        self.alive: list[Tensor] = []  # or one of them could get another's place
        self.block: dict[int, int] | None = None  # likewise, inside a block that is not kept
        self.largest = 0

    @property
    def total(self) -> int:
        """The bytes at the fullest moment."""
        return sum(self.kept.values()) + self.largest

    def see(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is kept."""
        storage = tensor.untyped_storage()
        place = storage._cdata  # addresses of fake tensors are all 0
        if place not in self.own and place not in self.kept:
            into = self.kept if self.block is None else self.block
            into[place] = storage.nbytes()
            self.alive.append(tensor)
        return tensor

    def keep(self, tensor: Tensor) -> None:
        """Count a tensor that a block keeps anyway."""
        storage = tensor.untyped_storage()
        self.kept[storage._cdata] = storage.nbytes()
        self.alive.append(tensor)

    def enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Begin a block: its inputs are kept."""
        again = is_checkpointed(module) and not keeps_all(module, arguments[0])
        if again and torch.is_grad_enabled():
            for tensor in arguments:
                if isinstance(tensor, Tensor):
                    self.see(tensor)
            self.block = {}

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """End a block."""
        if self.block is not None and is_checkpointed(module):
            self.largest = max(self.largest, sum(self.block.values()))
            self.block = None


@contextlib.contextmanager
def counted(*networks: nn.Module) -> Iterator[Count]:
    """Count what autograd keeps of what is computed inside, apart from the networks' weights."""
    own = (parameter for network in networks for parameter in network.parameters())
    count = Count({parameter.untyped_storage()._cdata for parameter in own})
    hooks = (
        register_module_forward_pre_hook(count.enter),
        register_module_forward_hook(count.leave),
    )
    try:
        with everything_kept(count.keep), saved_tensors_hooks(count.see, lambda tensor: tensor):
            yield count
    finally:
        for hook in hooks:
            hook.remove()


def size_of(network: nn.Module) -> int:
    """Return the bytes of a network's parameters."""
    return sum(parameter.nbytes for parameter in network.parameters())


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
