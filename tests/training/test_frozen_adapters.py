"""Adapters on a frozen network: how it is stored and computed changes nothing that they learn."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.fast.frozen import freeze
from ldm.training.finetuning.adapters import AdapterOptions, Adapters
from ldm.training.recipes.finetuning import FineTuningRecipe

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dropout": {"dropout": 0.5},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
    "dora": {"dora": True},
}


class Network(nn.Module):
    """A layer of each kind that has adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.to_q = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.point(F.silu(self.wide(F.silu(self.conv_in(x)))))
        return self.to_q(h.permute(0, 2, 3, 1))


def learner(**options: Any) -> tuple[Network, Adapters]:
    torch.manual_seed(0)
    network = Network().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore
    targets = ("wide", "point", "to_q")
    adapters = Adapters(network, AdapterOptions(rank=2, conv_rank=3, targets=targets, **options))
    for value in adapters.parameters():
        nn.init.normal_(value, std=0.1) if value.ndim > 1 else None
    adapters.attach(network)
    return network, adapters


def learnt(network: Network, adapters: Adapters, autocast: bool) -> list[Tensor]:
    """The output, and the gradients of all factors."""
    x = torch.randn((2, 4, 6, 6), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # of dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = network(x)
    return [y, *torch.autograd.grad(y.float().square().mean(), [*adapters.parameters()])]


def exact(adapters: Adapters) -> Any:
    recipe = SimpleNamespace(model=SimpleNamespace(adapters={"unet": adapters}))
    return FineTuningRecipe.exact_layers(cast("FineTuningRecipe", recipe), "unet")


@pytest.mark.parametrize("name", KINDS)
def test_in_float32(name: str) -> None:
    network, adapters = learner(**KINDS[name])
    expected = learnt(network, adapters, autocast=False)
    freeze(network)
    for mine, plain in zip(learnt(network, adapters, autocast=False), expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_in_bfloat16(name: str) -> None:
    network, adapters = learner(**KINDS[name])
    reference = learnt(network, adapters, autocast=False)
    expected = learnt(network, adapters, autocast=True)
    freeze(network, torch.bfloat16, exact(adapters))
    found = learnt(network, adapters, autocast=True)
    for mine, plain, full in zip(found, expected, reference, strict=True):
        error, usual = ((x.float() - full).abs().max() for x in (mine, plain))
        assert mine.dtype == plain.dtype and error <= 1.5 * usual + 1e-4
    assert network(torch.randn(1, 4, 6, 6)).dtype == torch.float32  # as samples are drawn


def test_weights_to_which_a_change_is_added_stay_exact() -> None:
    for name, stored in {"lora": torch.bfloat16, "dora": torch.float32}.items():
        network, adapters = learner(**KINDS[name])
        freeze(network, torch.bfloat16, exact(adapters))
        layers = dict(copy.copy(network).named_parameters())
        kept = {path.split(".")[0]: value.dtype for path, value in layers.items()}
        assert kept == {"conv_in": torch.float32} | dict.fromkeys(("wide", "point", "to_q"), stored)
