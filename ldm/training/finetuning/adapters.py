"""LoRA and its kin on the layers of a frozen network, to be trained.

What a layer computes is changed while its weights stay: y = W x + ΔW x, with ΔW by the formula
that reads such files (``ldm.adapters.changes``). So what is trained is what will be drawn with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.adapters.changes import weight_change
from ldm.checkpoints.lora_kinds import Factors
from ldm.config.settings import choice, within
from ldm.errors import ArgumentError
from ldm.fast import frozen
from ldm.training.finetuning.bypass import with_bypass
from ldm.training.finetuning.factors import KINDS, largest_rank, new_factors
from ldm.training.finetuning.targets import choose_layers


@dataclass(kw_only=True)
class AdapterOptions:
    """Which kind of adapters, and on which layers: a part of the table ``[options]``."""

    # "lora" (Hu et al. 2021), "loha" (Hyeon-Woo et al. 2022) or "lokr" (Yeh et al. 2023)
    kind: str = choice(*KINDS)
    rank: int = within("[1, inf)", 16)
    alpha: float | None = within("(0, inf)", None)  # the change is multiplied by α/rank; None: rank
    conv_rank: int | None = within("[1, inf)", None)  # of LoCon: adapters of convolutions, too
    conv_alpha: float | None = within("(0, inf)", None)  # None: conv_rank
    dora: bool = False  # learn rows' lengths apart from their directions (Liu et al. 2024)
    dropout: float = within("[0, 1)", 0.0)  # share of the adapters' inputs that is made 0
    factor: int = within("[-1, inf)", -1)  # of LoKr: the size of w₁, -1 for the most equal sizes
    targets: tuple[str, ...] = ()  # names or patterns of the U-Net's layers; (): kohya's choice
    text_encoder_targets: tuple[str, ...] = ()

    def rank_of(self, layer: nn.Module) -> int:
        """Return the rank for a layer: convolutions of several pixels may have their own."""
        return self.conv_rank if self.conv_rank and is_spatial(layer) else self.rank

    def alpha_of(self, layer: nn.Module) -> float:
        """Return α for a layer."""
        if self.conv_rank and is_spatial(layer):
            return float(self.conv_alpha or self.conv_rank)
        return float(self.alpha or self.rank)


def is_spatial(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of more than one pixel."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)


def is_linear(layer: nn.Conv2d) -> bool:
    """Whether a convolution is a linear layer of each pixel, as those around transformers are."""
    plain = layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1
    return plain and layer.padding == (0, 0)


class Adapter(nn.Module):
    """What is learnt for one layer."""

    def __init__(self, factors: Mapping[str, Tensor], alpha: float, dropout: float) -> None:
        super().__init__()
        self.factors = nn.ParameterDict(dict(factors))
        self.alpha, self.dropout = alpha, nn.Dropout(dropout)
        self.low_rank = factors.keys() == {"down", "up"}

    def values(self) -> Factors[Tensor]:
        """Return the factors as a file's are, with α."""
        return Factors(dict(self.factors.items()), alpha=self.alpha)

    def attach(self, layer: nn.Module) -> None:
        """Let a layer compute with this adapter, in the place of another one."""
        if isinstance(layer, nn.Linear):
            layer.forward = partial(self.linear, layer)  # type: ignore[method-assign]
        elif isinstance(layer, nn.Conv2d):  # ``ExactDownsample`` calls this one directly
            layer._conv_forward = partial(self.convolve, layer)  # type: ignore[method-assign]

    @staticmethod
    def detach(layer: nn.Module) -> None:
        """Let a layer compute as its class does, without an adapter."""
        for name in ("forward", "_conv_forward"):
            vars(layer).pop(name, None)

    def linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """Compute the layer's output with the change."""
        if self.low_rank:
            down, up = self.factors["down"], self.factors["up"]
            if not (self.dropout.p and self.training):
                return with_bypass(x, layer.weight, layer.bias, down, up, self.scale)
            y = frozen.linear(x, layer.weight, layer.bias)
            change = F.linear(F.linear(self.dropout(x), down.to(x.dtype)), up.to(x.dtype))
            return torch.add(y, change, alpha=self.scale)
        return self.by_weight(x, layer.weight, layer.bias, F.linear)

    def convolve(self, layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute a convolution with the change: ``Conv2d._conv_forward``."""
        apply = partial(frozen.convolve, layer)
        if self.low_rank:
            down, up = self.factors["down"], self.factors["up"]
            if is_linear(layer) and not (self.dropout.p and self.training):
                parts = (weight.flatten(1), bias, down.flatten(1), up.flatten(1))
                return with_bypass(x.permute(0, 2, 3, 1), *parts, self.scale).permute(0, 3, 1, 2)
            change = F.conv2d(apply(self.dropout(x), down.to(x.dtype), None), up.to(x.dtype))
            return torch.add(apply(x, weight, bias), change, alpha=self.scale)
        return self.by_weight(x, weight, bias, apply)

    def by_weight(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, apply: Callable[..., Tensor]
    ) -> Tensor:
        """Compute the output by the changed weight.

        With dropout, as in peft, the change alone reads what is left of the inputs.
        """
        with torch.autocast(x.device.type, enabled=False):
            change = weight_change(weight.float(), self.values())
        if self.dropout.p and self.training:
            return apply(x, weight, bias) + apply(self.dropout(x), change.to(weight.dtype), None)
        return apply(x, weight + change.to(weight.dtype), bias)

    @property
    def scale(self) -> float:
        """α/r of a LoRA."""
        return self.alpha / len(self.factors["down"])


class Adapters(nn.Module):
    """The adapters of one network: a mapping of its layers' paths to what is learnt for them."""

    def __init__(self, network: nn.Module, options: AdapterOptions, unread: int = 0) -> None:
        """Make new adapters, which change nothing yet.

        unread: see ``choose_layers``. Raises ArgumentError for a pattern that fits no layer, and a
        rank above what a layer can have.
        """
        super().__init__()
        patterns = options.targets if hasattr(network, "conv_in") else options.text_encoder_targets
        layers = choose_layers(network, patterns, options.conv_rank is not None, unread)
        self.layers = nn.ModuleDict()
        for path, layer in layers.items():
            rank = options.rank_of(layer)
            check_rank(path, layer, rank, options)
            factors = new_factors(
                options.kind, layer.weight, rank, dora=options.dora, factor=options.factor
            )
            adapter = Adapter(factors, options.alpha_of(layer), options.dropout)
            self.layers[path.replace(".", "/")] = adapter  # a module's name may have no dots

    def items(self) -> Iterator[tuple[str, Adapter]]:
        """Yield the layers' paths with their adapters."""
        for name, adapter in self.layers.items():
            assert isinstance(adapter, Adapter)
            yield name.replace("/", "."), adapter

    def attach(self, network: nn.Module) -> None:
        """Let a network compute with these adapters."""
        modules = dict(network.named_modules())
        for path, adapter in self.items():
            adapter.attach(modules[path])

    def detach(self, network: nn.Module) -> None:
        """Let a network compute as it does without adapters."""
        modules = dict(network.named_modules())
        for path, adapter in self.items():
            adapter.detach(modules[path])


def check_rank(path: str, layer: nn.Linear | nn.Conv2d, rank: int, options: AdapterOptions) -> None:
    """Raise ArgumentError for a rank that is above a layer's, where it would only cost memory."""
    most = largest_rank(layer.weight)
    if rank > most and options.kind != "lokr":
        name = "conv_rank" if rank == options.conv_rank and is_spatial(layer) else "rank"
        raise ArgumentError(
            f"options.{name} is {rank}, but {path} has weights of {tuple(layer.weight.shape)}, "
            f"whose rank is at most {most}; give a smaller one, or leave the layer out by "
            "options.targets"
        )
