"""How likely a diffusion model finds pictures: the variational bound, term by term.

    −log p(x₀) ≤ L_T + L_{T−1} + … + L_1 + L_0                        (Ho et al. 2020, eq. 5)

    L_T = KL(q(x_T | x₀) ‖ N(0, I))                        what is left of the picture in the noise
    L_t = KL(q(x_{t−1} | x_t, x₀) ‖ p(x_{t−1} | x_t))      the errors of the network
    L_0 = −log p(x₀ | x_1)                                 a discretised decoder, eq. 13

As in ``ldm.scheduler``, t counts from 0, so that L_t is the term with the network's output at t.
The first T terms call the network, the last does not. Ho et al. call L_0 the distortion and the
rest the rate (section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.scheduler import DDPMScheduler

Predict = Callable[[Tensor, Tensor], Tensor]  # (x_t (B,…), t int64 (B,)) → the network's output
HALF_GREY = 1 / 255  # half the distance of two neighbours of 256 grey values in [-1, 1]
BITS_PER_NAT = 1 / math.log(2)


def quantise(x: Tensor) -> Tensor:
    """Round pictures in [-1, 1] to the 256 values of 8-bit pixels, which the decoder is about.

    Values of pictures that were resized lie between them.
    """
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def gaussian_kl(
    mean: Tensor, log_variance: Tensor, mean_p: Tensor, log_variance_p: Tensor
) -> Tensor:
    """Compute KL(N(mean, e^log_variance) ‖ N(mean_p, e^log_variance_p)) of each value, in nats."""
    ratio = log_variance - log_variance_p
    return 0.5 * (ratio.exp() - 1 - ratio + (mean - mean_p).square() * (-log_variance_p).exp())


def decoder_nll(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute −log of the probability of x₀'s 8-bit value under N(mean, e^log_variance), in nats.

    Ho et al. 2020, eq. 13: the mass within ±1/255 of the value; black and white take the tails too.
    x0: one of 256 values in [-1, 1] (see ``quantise``).
    """
    scale = (-0.5 * log_variance).exp()
    low, high = ((x0 + side - mean) * scale for side in (-HALF_GREY, HALF_GREY))
    black, white = x0 < -1 + HALF_GREY, x0 > 1 - HALF_GREY
    # Φ(high) − Φ(low) is Φ(−low) − Φ(−high): in the lower tail no digits are lost.
    above = low + high > 0
    near = torch.special.log_ndtr(torch.where(white | (above & ~black), -low, high))
    far = torch.special.log_ndtr(torch.where(above, -high, low))
    inside = near + torch.log(-torch.expm1((far - near).clamp(max=-1e-6)))
    return -torch.where(black | white, near, inside)


def prior_term(scheduler: DDPMScheduler, x0: Tensor) -> Tensor:
    """Compute L_T of each picture, in nats per dimension: (B, …) → (B,)."""
    abar = scheduler.alphas_cumprod[-1].to(x0)
    zero = torch.zeros_like(abar)
    return gaussian_kl(abar.sqrt() * x0, (1 - abar).log(), zero, zero).flatten(1).mean(1)


def term(
    scheduler: DDPMScheduler,
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    clip: float | None = None,
) -> Tensor:
    """Compute L_t of each picture, in nats per dimension: (B,), differentiable in ``output``.

    Args:
        output: the network's at x_t: (B, C or 2C, …), of any ``prediction_type``.
        x0: pictures of 8-bit values in [-1, 1], (B, C, …).
        x_t: (B, C, …), at t, int64 (B,).
        clip: x̂₀ is clamped to ±clip, as ``clip_sample`` does.

    Raises CheckpointError for a ``variance_type`` that does not determine the variance.
    """
    prediction, v = scheduler.split(output)
    predicted = scheduler.to_x0(prediction, x_t, scheduler.levels(t, x_t))
    if clip is not None:
        predicted = predicted.clamp(-clip, clip)
    mean_p, _ = scheduler.posterior(predicted, x_t, t)
    log_variance_p = scheduler.log_variance(t, x_t, v)
    mean, variance = scheduler.posterior(x0, x_t, t)
    log_variance = variance.clamp(min=1e-20).log()
    values = gaussian_kl(mean, log_variance, mean_p, log_variance_p)
    first = t == 0  # the variance is 0 there, and the divergence not finite: the decoder's rows
    if first.any():
        spread = log_variance_p.expand_as(mean_p)[first]
        values = values.index_put((first,), decoder_nll(x0[first], mean_p[first], spread))
    return values.flatten(1).mean(1)


def bound_terms(
    scheduler: DDPMScheduler,
    predict: Predict,
    x0: Tensor,
    generator: torch.Generator,
    clip: float | None = None,
) -> Tensor:
    """Compute all terms of the bound: (B, T + 1), bits per dimension, L_0 to L_T.

    Each takes one draw of x_t, in T calls of the network.
    x0: pictures in [-1, 1], (B, C, …), which are rounded to 8 bits.
    """
    x0 = quantise(x0)
    terms = [
        _drawn(scheduler, predict, x0, torch.full((len(x0),), t, device="cpu"), generator, clip)
        for t in range(len(scheduler.ratios))
    ]
    return torch.stack([*terms, prior_term(scheduler, x0)], dim=1) * BITS_PER_NAT


def bound_estimate(
    scheduler: DDPMScheduler,
    predict: Predict,
    x0: Tensor,
    generator: torch.Generator,
    calls: int,
    clip: float | None = None,
) -> Tensor:
    """Estimate each picture's bound from few calls, unbiased: (B,), bits per dimension.

    L_0 and L_T are computed. The other times are divided into calls − 1 spans, which are short
    where the terms are large; for each span, every picture draws one time that represents it.
    Raises ArgumentError for fewer than two calls.
    """
    if calls < 2:
        raise ArgumentError(f"calls is {calls}; it must be at least 2: one is for L_0 alone")
    x0 = quantise(x0)
    at = torch.zeros(len(x0), dtype=torch.int64, device="cpu")
    total = prior_term(scheduler, x0) + _drawn(scheduler, predict, x0, at, generator, clip)
    for start, end in pairwise(spans(len(scheduler.ratios), calls - 1)):
        t = torch.randint(start, end, (len(x0),), generator=generator, device="cpu")
        total = total + (end - start) * _drawn(scheduler, predict, x0, t, generator, clip)
    return total * BITS_PER_NAT


def spans(total: int, count: int) -> list[int]:
    """Return the borders of at most ``count`` spans of [1, total), later ones longer."""
    borders = [total ** (i / count) for i in range(count + 1)]
    return sorted({max(1, min(round(border), total)) for border in borders})


def _drawn(
    scheduler: DDPMScheduler,
    predict: Predict,
    x0: Tensor,
    t: Tensor,
    generator: torch.Generator,
    clip: float | None,
) -> Tensor:
    """Compute ``term`` at t, int64 (B,), with x_t drawn from q(x_t | x₀): nats per dimension."""
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float32, device="cpu").to(x0)
    t = t.to(x0.device)
    x_t = scheduler.add_noise(x0, noise, t)
    return term(scheduler, predict(x_t, t), x0, x_t, t, clip)
