"""The memory and the data of a run, for ``--dry-run``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.training.config import TrainConfig
from ldm.training.loop import fast_attention
from ldm.training.optimizer_state import moments_size
from ldm.training.recipes.base import Recipe


def describe_run(config: TrainConfig, recipe: Recipe, processes: int = 1) -> Iterator[str]:
    """Yield lines on the size of the model, of the data, and of the memory of one process."""
    weights = sum(parameter.nbytes for parameter in recipe.model.parameters())
    count = sum(parameter.numel() for parameter in recipe.model.parameters())
    yield f"model: {count / 1e6:.2f}M parameters to train"
    learnt, held_out = recipe.examples()
    if learnt:
        yield f"data: {config.data}: {learnt} examples to learn from, {held_out} held out"
        yield f"run: {config.steps * config.batch_size / learnt:.1f} times through the data"
    else:
        yield f"data: {config.data}: read in order, {held_out} examples held out"
    moments = moments_size(recipe.model, config)
    state = 3 * weights + moments
    yield (
        f"memory: {_gb(state)} for weights, gradients, their average ({_gb(weights)} each) "
        f"and the optimizer's moments ({_gb(moments)})"
    )
    rows = config.batch_size // (processes * config.gradient_accumulation_steps)
    kept = kept_activations(config, recipe, rows)
    if kept is None:
        yield "memory: activations are not counted, this recipe cannot tell before it begins"
    else:
        yield f"memory: {_gb(kept)} for the activations of {rows} examples at once"
    yield f"disk: {_gb(2 * weights + moments)} for each of two checkpoints"


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
    kept: dict[int, int] = {}  # bytes of each piece of memory, by its address
    alive = []  # or an address could come twice
    own = {parameter.untyped_storage().data_ptr() for parameter in recipe.model.parameters()}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    cpu, bf16 = torch.device("cpu"), config.mixed_precision != "no"
    with (
        torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        fast_attention(cpu),
    ):
        loss, _ = recipe.loss(recipe.model, batch)
        del loss
    return sum(kept.values())


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
