"""Muon: orthogonalisation against the SVD, AdamW's part against PyTorch's, and that it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ldm.training import muon
from ldm.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_orthogonalise_keeps_the_directions_and_levels_the_lengths(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    # Diagonal where the directions are the SVD's.
    inner = u.T @ orthogonalise(matrix).float() @ vh.T
    assert (inner - inner.diag().diag()).abs().max() < 0.05
    assert inner.diag().min() > 0.6 and inner.diag().max() < 1.25


def test_matrices_of_one_shape_move_as_each_would_alone() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(16, 24, 3), nn.Conv2d(16, 24, 3), nn.Linear(144, 24), nn.Linear(24, 40)]
    for layer in layers:
        layer.weight.grad = torch.randn_like(layer.weight)
    alone = copy.deepcopy(layers)
    for theirs, ours in zip(alone, layers, strict=True):
        theirs.weight.grad = ours.weight.grad.clone()
        Muon([theirs.weight], lr=0.1).step()
    Muon([layer.weight for layer in layers], lr=0.1).step()
    for theirs, ours in zip(alone, layers, strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-5, rtol=0)


def test_vectors_are_updated_as_by_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    optimizers = Muon([ours], **settings), torch.optim.AdamW([theirs], **settings)
    for _ in range(20):
        grad = torch.randn(7)
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = grad.clone()
            optimizer.step()
    assert (ours - theirs).abs().max() < 1e-6


def test_a_convolution_is_learnt() -> None:
    torch.manual_seed(0)
    target = nn.Conv2d(16, 16, 3, padding=1)
    model = nn.Conv2d(16, 16, 3, padding=1)
    optimizer = Muon(model.parameters(), lr=0.004, weight_decay=0.0)
    losses = []
    for _ in range(150):
        x = torch.randn(8, 16, 6, 6)
        loss = (model(x) - target(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_state_survives_saving() -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 20)
    optimizer = Muon(model.parameters(), lr=0.01)
    model(torch.randn(4, 20)).sum().backward()
    optimizer.step()
    other = Muon(model.parameters(), lr=0.01)
    other.load_state_dict(optimizer.state_dict())
    before = optimizer.state_dict()["state"]
    after = other.state_dict()["state"]
    assert torch.equal(before[0]["momentum"], after[0]["momentum"])
    assert before[1]["step"] == after[1]["step"] == 1


def test_a_round_is_the_published_polynomial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "ROUNDS", 1)
    values = torch.tensor([1.0, 0.5, 0.2, 0.05])
    x = values / values.norm()
    expected = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5  # Jordan et al. 2024
    found = muon.orthogonalise(torch.diag(values)).float()
    torch.testing.assert_close(found, torch.diag(expected), atol=0.01, rtol=0)
