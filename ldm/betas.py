"""Noise schedules: β of every step of the forward process, by diffusers' names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def linear(start: float, end: float, steps: int) -> Tensor:
    """Ho et al. 2020, section 4: β evenly from start to end."""
    return torch.linspace(start, end, steps, dtype=torch.float32)


def quadratic(start: float, end: float, steps: int) -> Tensor:
    """√β evenly from start's to end's root (Song et al. 2021, DDIM's code, "quad").

    Latent diffusion calls it "linear", and diffusers "scaled_linear": they are one and the same.
    """
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2


def sigmoid(start: float, end: float, steps: int) -> Tensor:
    """From start to end along 1/(1 + e^{−s}), s from −6 to 6 (Xu et al. 2022, GeoDiff's code)."""
    return torch.sigmoid(torch.linspace(-6, 6, steps)) * (end - start) + start


def squared_cosine(start: float, end: float, steps: int) -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17: ᾱ follows a squared cosine, β is capped at 0.999."""
    return _of_abar(lambda s: math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2, steps)


def exponential(start: float, end: float, steps: int) -> Tensor:
    """ᾱ = e^{−12 s} for s from 0 to 1, so that β is constant (diffusers' "exp")."""
    return _of_abar(lambda s: math.exp(-12 * s), steps)


def _of_abar(abar: Callable[[float], float], steps: int) -> Tensor:
    """β of an ᾱ that is known at every s in [0, 1], capped at 0.999."""
    capped = [min(1 - abar((i + 1) / steps) / abar(i / steps), 0.999) for i in range(steps)]
    return torch.tensor(capped, dtype=torch.float32)


# (β of the first step, of the last, T) → β (T,), by diffusers' names and the literature's
BETAS: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": linear,
    "scaled_linear": quadratic,
    "quadratic": quadratic,
    "squaredcos_cap_v2": squared_cosine,
    "sigmoid": sigmoid,
    "exp": exponential,
    "exponential": exponential,
}


def zero_terminal_snr(beta: Tensor) -> Tensor:
    """Lin et al. 2023, algorithm 1: shift and scale √ᾱ to end at 0 and start unchanged."""
    root = torch.cumprod(1 - beta, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    abar = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])
