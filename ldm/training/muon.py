"""Muon: an optimizer for matrices, with AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Newton–Schulz coefficients and rounds: Jordan et al. 2024, "Muon: an optimizer for hidden layers".
A, B, C, ROUNDS = 3.4445, -4.7750, 2.0315, 5
NARROW = 16  # matrices with fewer rows or columns, such as the last convolution, are left to AdamW


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for weights of two and more dimensions, AdamW for the others.

    A matrix's update is its momentum made orthogonal, so that no direction dominates. It is scaled
    to the size of an AdamW update (Liu et al. 2025, "Muon is scalable", eq. 4), hence one learning
    rate and one weight decay for all. Convolutions count as matrices (out, in·height·width).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; ``closure`` is not supported."""
        if closure is not None:
            raise NotImplementedError("Muon takes no closure")
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            vectors = [weight for weight in weights if not is_matrix(weight)]
            self._move(vectors, self._adam(vectors, group), group)
            matrices = [weight for weight in weights if is_matrix(weight)]
            self._move(matrices, self._orthogonal(matrices, group), group)

    @staticmethod
    def _move(weights: list[Tensor], updates: list[Tensor], group: dict) -> None:
        if weights:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(weights, updates, alpha=group["lr"])

    def _moments(self, weights: list[Tensor], name: str) -> list[Tensor]:
        return [self.state[w].setdefault(name, torch.zeros_like(gradient(w))) for w in weights]

    def _orthogonal(self, weights: list[Tensor], group: dict) -> list[Tensor]:
        """Compute the updates of matrices: their Nesterov momentum, orthogonalised."""
        if not weights:
            return []
        grads, momenta = list(map(gradient, weights)), self._moments(weights, "momentum")
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
        alike = defaultdict(list)  # matrices of one shape: one product of all takes less time
        for i, weight in enumerate(weights):
            alike[len(weight), weight[0].numel()].append(i)
        updates: list[Tensor] = [grads[0]] * len(weights)
        first = 0
        for shape, places in alike.items():
            together = torch.stack([ahead[i].contiguous().view(shape) for i in places])
            found = orthogonalise_together(together, first).float() * (0.2 * max(shape) ** 0.5)
            for i, update in zip(places, found, strict=True):
                updates[i] = update.view_as(weights[i])
            first += len(places)
        return updates

    def _adam(self, weights: list[Tensor], group: dict) -> list[Tensor]:
        """Compute the updates of vectors: AdamW's (Loshchilov & Hutter 2019), without the decay."""
        if not weights:
            return []
        (beta1, beta2), grads = group["betas"], list(map(gradient, weights))
        means, squares = (self._moments(weights, key) for key in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        for weight in weights:
            self.state[weight]["step"] = self.state[weight].get("step", 0) + 1
        steps = [self.state[weight]["step"] for weight in weights]
        scales = torch._foreach_div(squares, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, group["eps"])
        updates = torch._foreach_div(means, [1 - beta1**step for step in steps])
        torch._foreach_div_(updates, scales)
        return list(updates)


def gradient(weight: Tensor) -> Tensor:
    """Return the gradient of a weight that has one."""
    assert weight.grad is not None
    return weight.grad


def is_matrix(weight: Tensor) -> bool:
    """Whether Muon moves a parameter as a matrix."""
    return weight.ndim >= 2 and min(len(weight), weight[0].numel()) >= NARROW


def orthogonalise_together(matrices: Tensor, first: int) -> Tensor:
    """Orthogonalise (N, m, n), which all processes hold; each process computes its share.

    Process r of P takes the matrices whose number, counted from ``first``, leaves r when divided
    by P, and all exchange what they found.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return orthogonalise(matrices)
    mine = slice((dist.get_rank() - first) % dist.get_world_size(), None, dist.get_world_size())
    found = torch.zeros_like(matrices, dtype=torch.bfloat16)
    found[mine] = orthogonalise(matrices[mine])
    dist.all_reduce(found)  # each has one summand that is not zero, so this is exact
    return found


def orthogonalise(matrices: Tensor) -> Tensor:
    """Approximate U Vᵀ of the SVD U S Vᵀ by a Newton–Schulz iteration in bf16.

    (…, m, n) → (…, m, n), bfloat16; singular values end in about [0.7, 1.2].
    """
    x = matrices.bfloat16()
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return x.mT if tall else x
