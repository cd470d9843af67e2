"""What each optimizer keeps of a parameter: for estimates, for checkpoints, and to check these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.training.config import TrainConfig
from ldm.training.muon import is_matrix
from ldm.training.optimizer_options import read_options
from ldm.training.sharding import spread_like

EIGHT_BIT_SIZE = 4096  # smaller parameters have moments of 32 bits under bitsandbytes
BLOCK = 256  # values that share a scale there
# Prodigy's estimate of the rate, which it keeps beside the settings of each group.
OF_GROUPS = ("d", "d_max", "d_numerator", "k")


class Kept(NamedTuple):
    """A tensor that an optimizer keeps of a parameter."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """The bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def moments(optimizer: str, weight: Tensor, options: Mapping[str, Any]) -> dict[str, Kept]:
    """Return what an optimizer keeps of a weight, apart from the count of its steps.

    options: the optimizer's, with its ``betas``.
    """
    shape, count = tuple(weight.shape), weight.numel()
    whole = Kept(shape)
    if optimizer == "adamw":
        return {"exp_avg": whole, "exp_avg_sq": whole}
    if optimizer == "muon":
        return {"momentum": whole} if is_matrix(weight) else {"exp_avg": whole, "exp_avg_sq": whole}
    if optimizer == "adamw8bit":
        if count < EIGHT_BIT_SIZE:
            return {"state1": whole, "state2": whole}
        eight, scales = Kept(shape, torch.uint8), Kept((-(-count // BLOCK),))
        return {"state1": eight, "state2": eight, "absmax1": scales, "absmax2": scales}
    if optimizer == "adafactor":
        first = {} if options["beta1"] is None else {"exp_avg": whole}
        if len(shape) < 2:
            return first | {"exp_avg_sq": whole}
        row, column = Kept(shape[:-1]), Kept((*shape[:-2], shape[-1]))
        return first | {"exp_avg_sq_row": row, "exp_avg_sq_col": column}
    sliced = Kept((-(-count // options["slice_p"]),))
    first = {"exp_avg": whole} if options["betas"][0] > 0 else {}
    return first | {"exp_avg_sq": whole, "s": sliced, "p0": sliced}


def moments_size(model: nn.Module, config: TrainConfig) -> int:
    """Return the bytes of what the optimizer keeps of all weights."""
    options = read_options(config.optimizer, config.optimizer_options) | {"betas": config.betas}
    return sum(
        kept.nbytes
        for weight in model.parameters()
        if weight.requires_grad
        for kept in moments(config.optimizer, weight, options).values()
    )


def bare(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimizer without what accelerate wraps it in."""
    return getattr(optimizer, "optimizer", optimizer)


def saved_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return what a checkpoint holds of a parameter: not the tables that all of them share."""
    return {
        entry: value if torch.is_tensor(value) else torch.tensor(value)
        for entry, value in optimizer.state[parameter].items()
        if not entry.startswith("qmap")
    }


def load_state_of(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    group: dict[str, Any],
    found: dict[str, Tensor],
) -> None:
    """Give an optimizer the saved state of a parameter of a group.

    Raises ValueError for the state of another optimizer, or of a parameter of another shape.
    """
    expected = moments(type(bare(optimizer)).__name__.lower(), parameter, group)
    # Muon counts the steps of vectors alone; all others count everything's.
    counts = {"step"} - expected.keys() if "momentum" not in expected else set()
    if found.keys() != expected.keys() | counts:
        raise ValueError(f"it has {', '.join(sorted(found))}")
    state: dict[str, Any] = {}
    for entry, value in found.items():
        if entry == "step":
            if value.numel() != 1:
                raise ValueError(f"step is {tuple(value.shape)}; expected one number")
            floats = value.is_floating_point()  # AdamW has a tensor for its count
            state[entry] = value.to(parameter.device) if floats else int(value)
            continue
        # Prodigy keeps one 0 of a weight that began as zeros.
        if value.shape != expected[entry].shape and not (entry == "p0" and not value.ndim):
            raise ValueError(
                f"{entry} is {tuple(value.shape)}, here {tuple(expected[entry].shape)}"
            )
        if value.dtype != expected[entry].dtype:
            raise ValueError(f"{entry} is {value.dtype}, here {expected[entry].dtype}")
        state[entry] = placed(value, parameter)
    if "absmax1" in expected:
        maps = bare(optimizer).name2qmap  # type: ignore[attr-defined]
        for entry, name in (("qmap1", "dynamic"), ("qmap2", "udynamic")):
            maps[name] = state[entry] = maps[name].to(parameter.device)
    optimizer.state[parameter] = state


def placed(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Copy a moment to where its parameter is, with the parameter's layout if it has its shape."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    if value.dtype == parameter.dtype:
        return spread_like(parameter, value)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def group_state(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return what Prodigy keeps of its groups, which all of them share; {} of other optimizers."""
    group = optimizer.param_groups[0]
    if "d_numerator" not in group:
        return {}
    return {name: group[name] for name in OF_GROUPS}


def load_group_state(optimizer: torch.optim.Optimizer, found: object) -> None:
    """Load the result of ``group_state``. Raises ValueError for that of another optimizer."""
    own = group_state(optimizer)
    if not isinstance(found, dict) or found.keys() != own.keys():
        raise ValueError("optimizer is not of this run's optimizer")
    for name, value in found.items():
        if type(value) is not type(own[name]) or not math.isfinite(value):
            raise ValueError(f"optimizer.{name} is {value!r:.40}")
    for group in optimizer.param_groups:
        group.update(found)
