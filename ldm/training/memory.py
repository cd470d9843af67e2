"""What a run will need and learn from, for ``--dry-run``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ldm.training.config import TrainConfig
from ldm.training.loop import Recipe, fast_attention
from ldm.training.optimizer import moments_size


def plan(config: TrainConfig, recipe: Recipe, processes: int = 1) -> Iterator[str]:
    """Lines on the size of the model, of the data, and of the memory of one process."""
    weights = sum(parameter.nbytes for parameter in recipe.model.parameters())
    count = sum(parameter.numel() for parameter in recipe.model.parameters())
    yield f"model: {count / 1e6:.2f}M parameters to train"
    source: Any = recipe if hasattr(recipe, "train") else getattr(recipe, "data", None)
    if hasattr(source, "train"):
        learnt, held_out = len(source.train), len(source.held_out)
        yield f"data: {config.data}: {learnt} examples to learn from, {held_out} held out"
        yield f"run: {config.steps * config.batch_size / learnt:.1f} times through the data"
    moments = moments_size(recipe.model, config)
    state = 3 * weights + moments
    yield (
        f"memory: {_gb(state)} for weights, gradients, their average ({_gb(weights)} each) "
        f"and the optimizer's moments ({_gb(moments)})"
    )
    rows = config.batch_size // (processes * config.gradient_accumulation_steps)
    if hasattr(recipe, "example"):
        kept = kept_activations(config, recipe, rows)
        yield f"memory: {_gb(kept)} for the activations of {rows} examples at once"
    else:
        yield "memory: activations are not counted, this recipe cannot tell before it begins"
    yield f"disk: {_gb(2 * weights + moments)} for each of two checkpoints"


def kept_activations(config: TrainConfig, recipe: Recipe, rows: int) -> int:
    """Bytes that a pass forward keeps for the pass back, for a batch of ``rows``.

    Measured on one example and on two: what is kept grows in a straight line.
    """
    one, two = (_kept(config, recipe, recipe.example(count)) for count in (1, 2))
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
