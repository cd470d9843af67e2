"""Build the optimizer of a run: AdamW, in 8 bits too, Muon, Adafactor or Prodigy."""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ldm.config.settings import nearest
from ldm.errors import ArgumentError
from ldm.training.adafactor import Adafactor
from ldm.training.config import TrainConfig
from ldm.training.muon import Muon
from ldm.training.optimizer_options import read_options

# Packages of the optimizers that are not PyTorch's or ours.
PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
SMALL_RATE = 0.05  # a learning rate below it is a mistake where it multiplies one that is found


def check_optimizer(config: TrainConfig) -> None:
    """Raise ArgumentError if the optimizer's package is missing, or does not go with the rates.

    Warns of learning rates for AdamW given to an optimizer that finds its own.
    """
    name = config.optimizer
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        raise ArgumentError(
            f"optimizer is {name!r}, which is of the package {package}: pip install {package}"
        )
    rates = {config.learning_rate, *config.learning_rates.values()}
    if name == "prodigy" and len(rates) > 1:
        raise ArgumentError(
            "learning_rates has other rates than learning_rate, but Prodigy finds one for all "
            "parts; leave learning_rates out"
        )
    finds = name == "prodigy" or config.optimizer_options.get("relative_step", False)
    if finds and min(rates) < SMALL_RATE:
        warnings.warn(
            f"learning_rate is {min(rates)}, but optimizer {name!r} finds the rate itself, and "
            "this multiplies it: 1.0 is usual",
            stacklevel=2,
        )


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer that ``config.optimizer`` names, for all parameters of the model.

    Raises ArgumentError as ``check_optimizer`` and ``parameter_groups`` do.
    """
    check_optimizer(config)
    groups = parameter_groups(model, config)
    settings: dict[str, Any] = read_options(config.optimizer, config.optimizer_options)
    settings |= {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adafactor":
        return Adafactor(groups, **settings)
    settings["betas"] = config.betas
    if config.optimizer == "adamw":
        return AdamW(groups, fused=True, **settings)
    if config.optimizer == "muon":
        return Muon(groups, **settings)
    if config.optimizer == "adamw8bit":
        return import_module("bitsandbytes.optim").AdamW8bit(groups, **settings)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that weights decay
        return import_module("prodigyopt").Prodigy(groups, **settings)


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` that does not import ``torch._dynamo``: 70 MB, and seconds.

    PyTorch wraps these methods for the case that ``torch.compile`` traces them, which the loop does
    not do, even where it compiles the network.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters."""
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Group the parameters by their learning rates: each group has its highest as ``peak``.

    A part's parameters are named ``parts.NAME.…`` (see ``Trained``). Raises ArgumentError for a
    learning rate of a part that is not trained.
    """
    rates, parts = config.learning_rates, parts_of(model)
    for name in rates:
        if not parts:
            raise ArgumentError(
                f"learning_rates.{name} is the rate of a part, but recipe {config.recipe!r} trains "
                "one network; set learning_rate"
            )
        if name not in parts:
            raise ArgumentError(
                f"learning_rates.{name} is of no part that is trained; {nearest(name, parts)}"
            )
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(part_of(name) if rates else "", []).append(parameter)
    return [
        {"params": parameters, "peak": rates.get(part, config.learning_rate)}
        for part, parameters in groups.items()
    ]


def part_of(name: str) -> str:
    """Return the part of a parameter by its name: "unet" of "parts.unet.conv_in.bias"; or ""."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "parts" else ""


def parts_of(model: nn.Module) -> list[str]:
    """Return the names of a model's parts; none for a model without."""
    return sorted({part_of(name) for name, _ in model.named_parameters()} - {""})


def weights_format(config: TrainConfig, shards: bool = False) -> torch.memory_format:
    """Return the memory format of a model's weights, under FSDP if it ``shards`` them.

    Convolutions are fastest with channels last, but bitsandbytes would undo this in each
    step, and FSDP takes contiguous weights only.
    """
    plain = shards or config.optimizer == "adamw8bit"
    return torch.contiguous_format if plain else torch.channels_last
