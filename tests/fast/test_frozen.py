"""Frozen layers in training: the same outputs and gradients as PyTorch's, of less memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.fast.frozen import FEW, FrozenConv2d, FrozenGEGLU, FrozenLinear, freeze
from ldm.layers import GEGLU

LAYERS = {
    "3x3": (nn.Conv2d(8, 12, 3, padding=1), (2, 8, 7, 5)),
    "3x3 of many pixels": (nn.Conv2d(8, 12, 3, padding=1), (1, 8, 20, 20)),
    "strided": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 7, 5)),
    "strided without padding": (nn.Conv2d(8, 12, 3, stride=2), (1, 8, 8, 8)),
    "1x1": (nn.Conv2d(8, 12, 1), (2, 8, 20, 20)),
    "1x1 strided": (nn.Conv2d(8, 12, 1, stride=2), (2, 8, 6, 6)),
    "circular": (nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), (1, 8, 6, 6)),
    "dilated": (nn.Conv2d(8, 12, 3, padding=2, dilation=2), (1, 8, 6, 6)),
    "in groups": (nn.Conv2d(8, 12, 3, groups=4, bias=False), (1, 8, 6, 6)),
    "linear": (nn.Linear(8, 12), (2, 5, 8)),
    "gated": (GEGLU(8, 12), (2, 5, 8)),
    "linear without bias": (nn.Linear(8, 12, bias=False), (2, 5, 8)),
}


def gradient(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of x."""
    x = x.detach().requires_grad_()
    y = layer(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (y.float() * weights).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_frozen_layer_computes_as_pytorchs(name: str, last: bool) -> None:
    layer, size = LAYERS[name]
    model = copy.deepcopy(nn.Sequential(layer)).requires_grad_(False)
    x = torch.randn(size)
    if last and x.dim() == 4:
        model, x = (v.to(memory_format=torch.channels_last) for v in (model, x))  # type: ignore
    expected = gradient(model, x)
    freeze(model)
    assert isinstance(model[0], FrozenConv2d | FrozenLinear | FrozenGEGLU)
    for mine, plain in zip(gradient(model, x), expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-5)


def test_both_ways_of_a_convolution_are_compared() -> None:
    sizes = [size for name, (_, size) in LAYERS.items() if name.startswith("3x3")]
    few, many = (batch * height * width for batch, _, height, width in sizes)
    assert few <= FEW < many


@pytest.mark.parametrize("name", ["3x3", "3x3 of many pixels", "linear"])
def test_weights_in_autocasts_dtype_change_nothing(name: str) -> None:
    layer, size = LAYERS[name]
    model = copy.deepcopy(nn.Sequential(layer)).requires_grad_(False)
    x = torch.randn(size)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradient(model, x)
        freeze(model, torch.bfloat16)
        found = gradient(model, x)
    assert model[0].weight.dtype == torch.bfloat16 and found[0].dtype == torch.bfloat16
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, plain)
    y, grad = gradient(model, x)  # without autocast, as samples are drawn
    assert y.dtype == grad.dtype == torch.float32


def test_a_convolution_keeps_its_weight_alone() -> None:
    kept: list[Any] = []
    model = nn.Sequential(copy.deepcopy(LAYERS["3x3"][0])).requires_grad_(False)
    freeze(model)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        model(torch.randn(1, 8, 4, 4, requires_grad=True))
    assert [tensor.data_ptr() for tensor in kept] == [model[0].weight.data_ptr()]


def test_layers_that_learn_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 1))
    freeze(model, torch.bfloat16)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Conv2d]
    assert model[0].weight.dtype == torch.float32


def test_a_frozen_layer_can_be_set_free() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)).requires_grad_(False)
    freeze(model)
    model.requires_grad_(True)
    model(torch.randn(1, 4, 4, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
