"""The noise schedule: β → ᾱ, noising, training targets, posterior, and noise levels for samplers.

    x_t = α_t x₀ + σ_t ε,   α_t² = ᾱ_t,   σ_t² = 1 − ᾱ_t          (Ho et al. 2020, eq. 4)

A timestep t counts from 0 (almost clean) to T − 1 (almost noise); the clean image itself is t = −1.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ldm.config import SchedulerConfig
from ldm.errors import ArgumentError, CheckpointError

VARIANCE_TYPES = ("fixed_small", "fixed_large", "learned_range")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "mean")  # "mean" is not in diffusers
N = TypeVar("N", float, Tensor)


class Level(NamedTuple):
    """A noise level: x = α x₀ + σ ε with α² + σ² = 1, so that latents stay at unit scale."""

    t: float  # the network's input; fractional between two training timesteps
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """λ = log(α/σ), half the log-SNR: +∞ for a clean image, −∞ for pure noise."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf


CLEAN = Level(t=-1.0, alpha=1.0, sigma=0.0)


class Levels(NamedTuple):
    """The noise levels of a batch in training, one for each picture."""

    t: Tensor  # int64 (B,)
    alpha: Tensor  # float32 (B, 1, …), to multiply pictures
    sigma: Tensor  # like alpha


class DDPMScheduler:
    """The forward process of a checkpoint, and what its network predicts.

    The network predicts ε ("epsilon"), x₀ ("sample"), v ("v_prediction"), or the mean μ̃ of
    q(x_{t−1} | x_t, x₀) ("mean"; section 3.2 of Ho et al. explains why ε is better).
    Raises CheckpointError for an unknown ``beta_schedule`` or ``prediction_type``, and for numbers
    by which pictures do not become noisier from timestep to timestep.

    Attributes:
        alphas_cumprod: ᾱ (T,), float32, on the CPU.
        ratios: σ/α of every timestep (T floats), increasing: the σ of Karras et al. 2022.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        if config.prediction_type not in PREDICTION_TYPES:
            raise CheckpointError(
                f"prediction_type is {config.prediction_type!r}; "
                f"expected one of {', '.join(PREDICTION_TYPES)}"
            )
        self.config = config
        self.alphas_cumprod = torch.cumprod(1 - betas(config), dim=0)
        self._abar: list[float] = self.alphas_cumprod.tolist()
        check_noisier(self._abar)
        # At zero terminal SNR σ/α would be infinite; diffusers puts ᾱ = 2⁻²⁴ there, so we do.
        finite = self.alphas_cumprod.where(self.alphas_cumprod > 0, 2**-24)
        ratios = ((1 - finite) / finite) ** 0.5
        self.ratios: list[float] = ratios.tolist()
        self._log_ratios: list[float] = ratios.log().tolist()

    @property
    def clip(self) -> float | None:
        """Largest absolute value of a pixel of x̂₀; None: no limit."""
        return self.config.clip_sample_range if self.config.clip_sample else None

    # Training: t is int64 (B,), one timestep per picture.

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Compute x_t = α_t x₀ + σ_t ε (Ho et al. eq. 4): (B, …) in x0's dtype; t is int64 (B,)."""
        alpha, sigma = self._alpha_sigma(t, x0)
        return (alpha * x0 + sigma * noise).to(x0.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Compute what the network learns to predict at x_t: (B, …) in x0's dtype; t is int64 (B,).

        ε (Ho et al. 2020, eq. 14), x₀, v = α ε − σ x₀ (Salimans & Ho 2022, appendix D), or μ̃
        (Ho et al., eq. 7).
        """
        if self.config.prediction_type == "epsilon":
            return noise
        if self.config.prediction_type == "sample":
            return x0
        if self.config.prediction_type == "mean":
            return self.posterior(x0, self.add_noise(x0, noise, t), t)[0].to(x0.dtype)
        alpha, sigma = self._alpha_sigma(t, x0)
        return (alpha * noise - sigma * x0).to(x0.dtype)

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean (B, …) and variance (B, 1, …) of q(x_{t−1} | x_t, x₀), float32.

        Source: Ho et al. eq. 6–7. t is int64 (B,). At t = 0 the mean is x₀ and the variance 0.
        """
        of_x0, of_xt, _, variance = self._posterior(t)
        mean = _column(of_x0, x0) * x0 + _column(of_xt, x_t) * x_t
        return mean, _column(variance, x0)

    def log_variance(self, t: Tensor, like: Tensor, v: Tensor | None = None) -> Tensor:
        """Compute the log of the variance of p(x_{t−1} | x_t), float32: (B, 1, …), or like v.

        "fixed_small" is β̃ and "fixed_large" β (Ho et al., section 3.2). "learned_range" lies
        between the two, log Σ = w log β + (1 − w) log β̃ (Nichol & Dhariwal 2021, eq. 15), where
        w = (v + 1)/2 and v is the network's output. At t = 0 β̃ is 0; its value at t = 1 replaces
        it, and in "fixed_large" also replaces β there, as in both papers' code.

        t: int64 (B,); v: like the pictures.
        Raises CheckpointError for another ``variance_type``, ArgumentError if v is missing.
        """
        kind = self.config.variance_type
        if kind not in VARIANCE_TYPES:
            raise CheckpointError(
                f"scheduler_config.json: variance_type is {kind!r}; "
                f"expected one of {', '.join(VARIANCE_TYPES)}"
            )
        if kind == "learned_range" and v is None:
            raise ArgumentError("variance_type 'learned_range' needs v, which the network predicts")
        _, _, beta, small = self._posterior(t)
        instead = self._posterior(torch.ones(1, dtype=torch.int64, device="cpu"))[-1]
        small = torch.where(t.cpu() == 0, instead, small)
        if kind == "fixed_large":
            return _column(torch.where(t.cpu() == 0, instead, beta).log(), like)
        low = _column(small.log(), like)
        if v is None:
            return low
        high = _column(beta.log(), like)
        w = (v.float() + 1) / 2
        return w * high + (1 - w) * low

    def snr(self, t: Tensor) -> Tensor:
        """Compute ᾱ/(1 − ᾱ) at t, int64 (B,): float32 (B,), on t's device."""
        abar = self.alphas_cumprod.to(t.device)[t]
        return abar / (1 - abar)

    # The network's output at a level, or at a batch's levels; results are float32.

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the network's output (B, C or 2C, …) into the prediction and the variance's v."""
        if self.config.variance_type == "learned_range":
            prediction, v = output.chunk(2, dim=1)
            return prediction, v
        return output, None

    def to_x0(self, prediction: Tensor, x: Tensor, level: Level | Levels) -> Tensor:
        """Compute x̂₀ from the network's prediction at x. With "epsilon", α must not be 0."""
        prediction, x = prediction.float(), x.float()
        if self.config.prediction_type == "epsilon":
            return _minus(x, level.sigma, prediction).div_(level.alpha)
        if self.config.prediction_type == "sample":
            return prediction
        if self.config.prediction_type == "mean":
            of_x0, of_xt = self._of_mean(level, x)
            return _minus(prediction, of_xt, x).div_(of_x0)
        return _minus(level.alpha * x, level.sigma, prediction)

    def from_x0(self, x0: Tensor, x: Tensor, level: Level | Levels) -> Tensor:
        """Compute the prediction that ``to_x0`` turns into x0 (its inverse). σ must not be 0."""
        x0, x = x0.float(), x.float()
        if self.config.prediction_type == "epsilon":
            return _minus(x, level.alpha, x0).div_(level.sigma)
        if self.config.prediction_type == "sample":
            return x0
        if self.config.prediction_type == "mean":
            of_x0, of_xt = self._of_mean(level, x)
            return of_x0 * x0 + of_xt * x
        return (level.alpha * x).sub_(x0).div_(level.sigma)

    def to_eps(self, prediction: Tensor, x: Tensor, level: Level | Levels) -> Tensor:
        """Compute ε̂ from the prediction at x. With "sample" and "mean", σ must not be 0."""
        prediction, x = prediction.float(), x.float()
        if self.config.prediction_type == "epsilon":
            return prediction
        if self.config.prediction_type == "v_prediction":
            return level.alpha * prediction + level.sigma * x
        return _minus(x, level.alpha, self.to_x0(prediction, x, level)).div_(level.sigma)

    def predicting(self, prediction_type: str) -> DDPMScheduler:
        """Return the same noise schedule for a network that predicts something else."""
        return DDPMScheduler(replace(self.config, prediction_type=prediction_type))

    def levels(self, t: Tensor, like: Tensor) -> Levels:
        """Return the levels of t, int64 (B,), shaped for `like` (B, …) and on its device."""
        return Levels(t, *self._alpha_sigma(t, like))

    # Levels for samplers: Python floats.

    def level(self, t: float) -> Level:
        """Return the level of t in [0, T − 1], or the clean image for t = −1.

        Between two timesteps σ/α is interpolated linearly, as diffusers' Euler does.
        Raises ArgumentError for any other t.
        """
        if t == CLEAN.t:
            return CLEAN
        if not 0 <= t <= len(self.ratios) - 1:
            raise ArgumentError(f"t is {t}; it must be -1 or in [0, {len(self.ratios) - 1}]")
        if t == int(t):
            abar = self._abar[int(t)]
            return Level(float(t), math.sqrt(abar), math.sqrt(1 - abar))
        low, weight = int(t), t - int(t)
        ratio = (1 - weight) * self.ratios[low] + weight * self.ratios[low + 1]
        return _from_ratio(float(t), ratio)

    def level_of(self, ratio: float) -> Level:
        """Return the level with σ/α = ratio > 0; its t, maybe fractional, is linear in log(σ/α)."""
        log_ratio = math.log(ratio)
        low = min(max(bisect_right(self._log_ratios, log_ratio) - 1, 0), len(self.ratios) - 2)
        below, above = self._log_ratios[low : low + 2]
        weight = (log_ratio - below) / (above - below)
        return _from_ratio(low + min(max(weight, 0.0), 1.0), ratio)

    def _of_mean(self, level: Level | Levels, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Return the weights of x₀ and x_t in μ̃ at a level (Ho et al. eq. 7)."""
        if isinstance(level, Levels):
            of_x0, of_xt, *_ = self._posterior(level.t)
            return _column(of_x0, x), _column(of_xt, x)
        t = level.t - 1  # of the level before; below the first timestep σ/α falls to 0 linearly
        below = (1 + t) * self.ratios[0] if t < 0 else None
        before = self.level(t) if below is None else _from_ratio(t, below)
        return _posterior(before.alpha**2, level.alpha**2)[:2]

    def _posterior(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute ``_posterior`` at a batch's t, int64 (B,): each float64 (B,), on the CPU."""
        abar = self.alphas_cumprod.double()
        before = torch.cat([abar.new_ones(1), abar])[t.cpu()]
        return _posterior(before, abar[t.cpu()])

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ at t (B,), float32, shaped to multiply `like` (B, …)."""
        abar = _column(self.alphas_cumprod.to(like.device)[t.to(like.device)], like)
        return abar**0.5, (1 - abar) ** 0.5


def check_noisier(abar: list[float]) -> None:
    """Raise CheckpointError unless ᾱ of the timesteps decreases from below 1 to 0 or above."""
    pairs = zip([1.0, *abar], abar, strict=False)
    wrong = next((t for t, (before, after) in enumerate(pairs) if not 0 <= after < before), None)
    if wrong is not None:
        raise CheckpointError(
            f"the noise schedule is broken: timestep {wrong} is not noisier than the one before; "
            "check beta_start, beta_end, beta_schedule, trained_betas and num_train_timesteps in "
            "scheduler_config.json"
        )


def _posterior(before: N, abar: N) -> tuple[N, N, N, N]:
    """Compute q(x_{t−1} | x_t, x₀) from ᾱ_{t−1} and ᾱ_t: the mean's weights of x₀ and x_t, β, β̃.

    μ̃ = √ᾱ_{t−1} β/(1 − ᾱ_t) x₀ + √(1 − β) (1 − ᾱ_{t−1})/(1 − ᾱ_t) x_t
    β̃ = (1 − ᾱ_{t−1})/(1 − ᾱ_t) β,   1 − β = ᾱ_t/ᾱ_{t−1}          (Ho et al. eq. 6–7)
    """
    beta = 1 - abar / before
    shrink = (1 - before) / (1 - abar)
    of_x0 = before**0.5 * beta / (1 - abar)
    return of_x0, (abar / before) ** 0.5 * shrink, beta, shrink * beta


def linear_betas(start: float, end: float, steps: int) -> Tensor:
    """Space β evenly from start to end (Ho et al. 2020, section 4)."""
    return torch.linspace(start, end, steps, dtype=torch.float32, device="cpu")


def quadratic_betas(start: float, end: float, steps: int) -> Tensor:
    """Space √β evenly from start's to end's root (Song et al. 2021, DDIM's code, "quad").

    Latent diffusion calls the same "linear", and diffusers "scaled_linear".
    """
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32, device="cpu") ** 2


def sigmoid_betas(start: float, end: float, steps: int) -> Tensor:
    """Follow 1/(1 + e^{−s}) from start to end, s from −6 to 6 (Xu et al. 2022, GeoDiff's code)."""
    return (
        torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float32, device="cpu"))
        * (end - start)
        + start
    )


def squared_cosine_betas(start: float, end: float, steps: int) -> Tensor:
    """Let ᾱ follow a squared cosine; β is capped at 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    return _of_abar(lambda s: math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2, steps)


def exponential_betas(start: float, end: float, steps: int) -> Tensor:
    """Let ᾱ be e^{−12 s} for s from 0 to 1, so that β is constant (diffusers' "exp")."""
    return _of_abar(lambda s: math.exp(-12 * s), steps)


def _of_abar(abar: Callable[[float], float], steps: int) -> Tensor:
    """Compute β from ᾱ as a function of s in [0, 1], capped at 0.999."""
    capped = [min(1 - abar((i + 1) / steps) / abar(i / steps), 0.999) for i in range(steps)]
    return torch.tensor(capped, dtype=torch.float32, device="cpu")


# (β of the first step, of the last, T) → β (T,), by diffusers' names and the literature's
BETAS: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": quadratic_betas,
    "quadratic": quadratic_betas,
    "squaredcos_cap_v2": squared_cosine_betas,
    "sigmoid": sigmoid_betas,
    "exp": exponential_betas,
    "exponential": exponential_betas,
}


def zero_terminal_snr(beta: Tensor) -> Tensor:
    """Shift and scale √ᾱ to end at 0 and start unchanged (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1 - beta, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    abar = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


def betas(config: SchedulerConfig) -> Tensor:
    """Return β (T,), float32: variance of the noise that each step of the forward process adds.

    It comes from ``trained_betas``, else from the formula of ``beta_schedule``, some of which do
    not read ``beta_start`` and ``beta_end``.

    Raises CheckpointError for an unknown ``beta_schedule``.
    """
    steps = config.num_train_timesteps
    if config.trained_betas is not None:
        beta = torch.tensor(config.trained_betas, dtype=torch.float32, device="cpu")
    elif config.beta_schedule in BETAS:
        beta = BETAS[config.beta_schedule](config.beta_start, config.beta_end, steps)
    else:
        raise CheckpointError(
            f"beta_schedule is {config.beta_schedule!r}; expected one of {', '.join(BETAS)}"
        )
    return zero_terminal_snr(beta) if config.rescale_betas_zero_snr else beta


def _from_ratio(t: float, ratio: float) -> Level:
    """Return the level whose σ/α is ratio."""
    alpha = 1 / math.hypot(1, ratio)
    return Level(t, alpha, ratio * alpha)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Shape values (B,) to multiply `like` (B, …): float32 (B, 1, …), on its device."""
    return values.to(like.device, torch.float32).view(-1, *(1,) * (like.ndim - 1))


def _minus(x: Tensor, scale: float | Tensor, y: Tensor) -> Tensor:
    """Compute x − scale·y; with a float, in one pass over the memory."""
    return x.sub(y, alpha=scale) if isinstance(scale, float) else x - scale * y
