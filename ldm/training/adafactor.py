"""Adafactor: an optimizer that keeps one number for each row and column of a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ldm.training.muon import gradient


class Adafactor(torch.optim.Optimizer):
    """Adafactor (Shazeer & Stern 2018, algorithms 4 and 5): AdamW without moments of every weight.

    The squares' average of a weight (…, m, n) is kept as its means over rows and over columns, so
    a convolution's are over its window, as in fairseq's and transformers' versions, from which it
    differs in nothing but this: the relative step is multiplied by ``lr``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = False,
        relative_step: bool = False,
        warmup_init: bool = False,
    ) -> None:
        """See ``AdafactorOptions``; weight_decay is multiplied by the rate, as AdamW's is."""
        super().__init__(
            params,
            {
                "lr": lr,
                "eps": eps,
                "clip_threshold": clip_threshold,
                "decay_rate": decay_rate,
                "beta1": beta1,
                "weight_decay": weight_decay,
                "scale_parameter": scale_parameter,
                "relative_step": relative_step,
                "warmup_init": warmup_init,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; ``closure`` is not supported."""
        if closure is not None:
            raise NotImplementedError("Adafactor takes no closure")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        step = state["step"] = state.get("step", 0) + 1
        rate = learning_rate(weight, step, group)
        update = self._normalised(gradient(weight).float(), state, group)
        update /= (root_mean_square(update) / group["clip_threshold"]).clamp(min=1.0)
        update *= rate
        if group["beta1"] is not None:
            mean = state.setdefault("exp_avg", torch.zeros_like(update))
            update = mean.mul_(group["beta1"]).add_(update, alpha=1 - group["beta1"])
        if group["weight_decay"]:
            weight -= group["weight_decay"] * rate * weight
        weight -= update

    @staticmethod
    def _normalised(grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Return the gradient over the root of its squares' average, which is updated first."""
        beta2 = 1 - math.pow(state["step"], group["decay_rate"])
        squares = grad.square() + group["eps"][0]
        if grad.ndim < 2:
            mean = state.setdefault("exp_avg_sq", torch.zeros_like(grad))
            return mean.mul_(beta2).add_(squares, alpha=1 - beta2).rsqrt() * grad
        rows, columns = squares.mean(-1), squares.mean(-2)
        row = state.setdefault("exp_avg_sq_row", torch.zeros_like(rows))
        column = state.setdefault("exp_avg_sq_col", torch.zeros_like(columns))
        row.mul_(beta2).add_(rows, alpha=1 - beta2)
        column.mul_(beta2).add_(columns, alpha=1 - beta2)
        scale = (row / row.mean(-1, keepdim=True)).rsqrt()
        return scale[..., :, None] * column.rsqrt()[..., None, :] * grad


def learning_rate(weight: Tensor, step: int, group: dict[str, Any]) -> float | Tensor:
    """Return a weight's learning rate: the schedule's, or the paper's relative step (section 8)."""
    rate: float = group["lr"]
    if group["relative_step"]:
        rate *= min(1e-6 * step if group["warmup_init"] else 1e-2, 1 / math.sqrt(step))
    if not group["scale_parameter"]:
        return rate
    return root_mean_square(weight).clamp(min=group["eps"][1]) * rate


def root_mean_square(x: Tensor) -> Tensor:
    """Return √(mean of squares), a scalar tensor."""
    return x.norm(2) / x.numel() ** 0.5
