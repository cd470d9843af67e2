"""Computing again what is cheap: the same gradients bit by bit, fewer bytes kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ldm.fast.recompute import keep, known, recomputed


class Layer(nn.Module):
    """Two products around one that is kept."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.calls = 0

    def costly(self, x: Tensor) -> Tensor:
        found = known()
        if found is not None:
            return found.detach().requires_grad_()
        self.calls += 1
        return keep(x * 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = self.costly(F.dropout(F.gelu(self.first(x)), 0.5))
        return self.last(F.silu(y)) * scale


def gradients(layer: Layer, again: bool, twice: bool = False) -> list[Tensor]:
    torch.manual_seed(1)
    x = torch.randn(4, 8).requires_grad_()
    forward = layer.forward
    y = recomputed(layer, forward, x, 3.0) if again else forward(x, 3.0)
    inputs = [x, *layer.parameters()]
    if twice:
        torch.autograd.grad(y.square().sum(), inputs, retain_graph=True)
    return list(torch.autograd.grad(y.square().sum(), inputs))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_gradients_are_bit_identical(bf16: bool, twice: bool) -> None:
    layer = Layer()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        plain = gradients(layer, again=False)
        found = gradients(layer, again=True, twice=twice)
    assert all(map(torch.equal, found, plain)) and all(grad.any() for grad in plain)


def test_what_is_kept_is_not_computed_again() -> None:
    layer = Layer()
    gradients(layer, again=True)
    assert layer.calls == 1


def test_the_random_state_stays() -> None:
    layer = Layer()
    gradients(layer, again=False)
    plain = torch.rand(1)
    gradients(layer, again=True)
    assert torch.equal(torch.rand(1), plain)


def test_inside_autograd_gets_numbers_and_outside_tensors() -> None:
    layer, seen = Layer(), []
    x = torch.randn(4, 8).requires_grad_()
    with saved_tensors_hooks(lambda tensor: seen.append(tensor), lambda _: None):
        y = recomputed(layer, layer.forward, x)
        assert not seen
        y.square()
    assert len(seen) == 1


def test_without_gradients_nothing_is_kept() -> None:
    layer = Layer()
    with torch.no_grad():
        assert not recomputed(layer, layer.forward, torch.ones(1, 8)).requires_grad
