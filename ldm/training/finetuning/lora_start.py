"""A LoRA's file to start from: its factors in the place of new ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.adapters.low_rank import scaling
from ldm.checkpoints.lora_kinds import Factors, rank_of
from ldm.errors import ArgumentError
from ldm.training.finetuning.adapters import Adapter
from ldm.training.finetuning.trained import Trained

# The factor of each kind that α/r of another value is brought into.
SCALED = {"LoRA": "up", "LoHa": "hada_w1_a", "LoKr": "lokr_w1"}


@torch.no_grad()
def begin_with_lora(model: Trained, start: str) -> Mapping[str, dict[str, Tensor]]:
    """Give the adapters what a LoRA's file, of any tool, has learnt; "" leaves them as they are.

    Layers that the file does not change begin anew, with a warning: convolutions may join a LoRA of
    attention. Returns the file's words, each with its vectors by text encoder.
    Raises CheckpointError for a file that is broken or of another family, ArgumentError for one of
    another kind or rank than the options, or that changes layers without adapters.
    """
    if not start:
        return {}
    lora = model.pipe.loras.read(Path(start).expanduser())
    updates = dict(lora.updates)
    new: list[str] = []
    for part, adapters in model.adapters.items():
        for path, adapter in adapters.items():
            found = updates.pop((part, path), None)
            if found is None:
                new.append(f"{part}.{path}")
            else:
                fill(adapter, found, f"start is {start!r}, where {part}.{path}")
    if updates:
        part, path = next(iter(updates))
        raise ArgumentError(
            f"start is {start!r}, which also changes {len(updates)} layers without adapters, such "
            f"as {part}.{path}; add them by options.targets, conv_rank or train_text_encoder"
        )
    if new:
        warnings.warn(
            f"start is {start!r}, which has nothing for {len(new)} layers, such as {new[0]}; these "
            "begin anew",
            stacklevel=4,
        )
    return lora.words


def fill(adapter: Adapter, found: Factors[Tensor], where: str) -> None:
    """Copy a layer's factors; α is brought into one of them."""
    own = adapter.values()
    tensors = {role: value for role, value in found.tensors.items() if role != "alpha"}
    if "magnitude" in tensors:  # peft's name
        tensors["dora_scale"] = tensors.pop("magnitude")
    if tensors.keys() != own.tensors.keys() or found.kinds != own.kinds:
        raise ArgumentError(
            f"{where} is {', '.join(found.kinds) or 'unknown'} with {', '.join(sorted(tensors))}; "
            f"the options make {', '.join(own.kinds)} with {', '.join(sorted(own.tensors))}"
        )
    for role, value in tensors.items():
        place = own.tensors[role]
        lengths = role == "dora_scale"  # in peft's files along another axis
        if value.numel() != place.numel() or (len(value) != len(place) and not lengths):
            raise ArgumentError(
                f"{where} has {role} of {tuple(value.shape)}, rank {rank_of(found)}; the options "
                f"make {tuple(place.shape)}, rank {rank_of(own)}: give options.rank and conv_rank "
                "as the file has them"
            )
        place.copy_(value.reshape(place.shape))
    if rank := rank_of(own):
        own.tensors[SCALED[own.kinds[0]]].mul_(scaling(found, rank) / scaling(own, rank))
