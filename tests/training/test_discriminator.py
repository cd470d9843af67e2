"""The patch discriminator: each side learns from its own term."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.training.discriminator import SMALLEST, PatchDiscriminator, adversarial_terms


class Scaled(nn.Module):
    """D(x) = w x."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w * x


def test_terms_and_their_gradients() -> None:
    """By hand: hinges of real ones below 1, and of drawn ones above -1."""
    d = Scaled(2.0)
    x = torch.tensor([[0.25, 1.0]])
    drawn = torch.tensor([[0.5, -1.0]], requires_grad=True)
    fooling, telling = adversarial_terms(d, x, drawn)
    assert fooling == -(1.0 - 2.0) / 2
    assert telling == ((1 - 0.5) + 0) / 2 + ((1 + 1.0) + 0) / 2
    (fooling + telling).backward()
    assert drawn.grad.tolist() == [[-1.0, -1.0]]  # of fooling alone: -w/2
    assert d.w.grad == -0.25 / 2 + 0.5 / 2  # of telling alone


def test_patches() -> None:
    torch.manual_seed(0)
    d = PatchDiscriminator(3, width=8)
    assert d(torch.zeros(2, 3, 64, 40)).shape == (2, 1, 6, 3)
    assert d(torch.zeros(1, 3, SMALLEST, SMALLEST)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        d(torch.zeros(1, 3, SMALLEST - 1, SMALLEST - 1))


def test_it_tells_noise_from_flat_pictures() -> None:
    torch.manual_seed(0)
    d = PatchDiscriminator(3, width=8)
    optimizer = torch.optim.AdamW(d.parameters(), 2e-3)
    for _ in range(40):
        x = torch.rand(8, 3, 1, 1).expand(8, 3, 32, 32) * 2 - 1
        drawn = (x + 0.3 * torch.randn(8, 3, 32, 32)).requires_grad_()
        _, telling = adversarial_terms(d, x, drawn)
        optimizer.zero_grad()
        telling.backward()
        assert drawn.grad is None
        optimizer.step()
    assert float(telling.detach()) < 0.2  # 2 where it knows nothing


def test_hinge_is_the_paper_s() -> None:
    """Against an independent form on random scores."""
    torch.manual_seed(0)
    real, drawn = torch.randn(50), torch.randn(50)

    class Table(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    fooling, telling = adversarial_terms(Table(), real, drawn)
    want = torch.stack([(1 - real).clamp(min=0), F.threshold(1 + drawn, 0, 0)]).mean(1).sum()
    assert torch.allclose(telling, want) and torch.allclose(fooling, -drawn.mean())
