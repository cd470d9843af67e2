"""The variational bound, of Gaussian data with an exact denoiser, where all of it is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from ldm.config import SchedulerConfig
from ldm.errors import ArgumentError, CheckpointError
from ldm.likelihood import (
    Predict,
    bound_estimate,
    bound_terms,
    decoder_nll,
    gaussian_kl,
    prior_term,
    quantise,
    spans,
    term,
)
from ldm.scheduler import PREDICTION_TYPES, DDPMScheduler

M, S = 0.1, 0.3  # of the data, x₀ ~ N(M, S²) in every pixel, rounded to 8 bits
GREYS = np.arange(256) / 127.5 - 1
EDGES = (GREYS[1:] + GREYS[:-1]) / 2
PROBABILITY = np.diff(norm.cdf(EDGES, M, S), prepend=0, append=1)


def schedule(**settings: object) -> tuple[DDPMScheduler, np.ndarray, np.ndarray]:
    """A scheduler, and β and ᾱ in float64."""
    values = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2, **settings}
    beta = np.linspace(values["beta_start"], values["beta_end"], values["num_train_timesteps"])
    return DDPMScheduler(SchedulerConfig.from_dict(values)), beta, np.cumprod(1 - beta)


def posterior(beta: np.ndarray, abar: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of x₀ and of x_t in μ̃, and β̃ (Ho et al. eq. 7), for every t."""
    before = np.append(1, abar[:-1])
    of_xt = np.sqrt(1 - beta) * (1 - before) / (1 - abar)
    return np.sqrt(before) * beta / (1 - abar), of_xt, (1 - before) / (1 - abar) * beta


def gain(abar: np.ndarray) -> np.ndarray:
    """k in E[x₀ | x_t] = M + k (x_t − α M)."""
    return np.sqrt(abar) * S**2 / (abar * S**2 + 1 - abar)


def left(abar: np.ndarray) -> np.ndarray:
    """Var[x₀ | x_t]."""
    return S**2 * (1 - abar) / (abar * S**2 + 1 - abar)


def exact(scheduler: DDPMScheduler, abar: np.ndarray, v: np.ndarray | None = None) -> Predict:
    """The network that knows E[x₀ | x_t], and says it in the scheduler's terms."""
    k, root = torch.tensor(gain(abar)), torch.tensor(np.sqrt(abar))

    def predict(x: Tensor, t: Tensor) -> Tensor:
        column = (-1, 1, 1, 1)
        x0 = M + k[t].view(column) * (x - M * root[t].view(column))
        output = scheduler.from_x0(x0, x, scheduler.levels(t, x))
        if v is None:
            return output
        said = torch.tensor(v, dtype=torch.float32)[t].view(column).expand_as(output)
        return torch.cat([output, said], dim=1)

    return predict


def pictures(count: int = 1, side: int = 128) -> Tensor:
    """Data that has all grey values as often as their probability says."""
    places = (np.arange(count * side * side) + 0.5) / (count * side * side)
    values = GREYS[np.searchsorted(np.cumsum(PROBABILITY), places)]
    shuffled = np.random.default_rng(0).permutation(values)
    return torch.tensor(shuffled, dtype=torch.float32).reshape(count, 1, side, side)


def expected_terms(beta: np.ndarray, abar: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """L_0 … L_T in bits, by sums over the grey values and an integral over the noise."""
    of_x0, _, small = posterior(beta, abar)
    k, alpha = gain(abar), np.sqrt(abar)
    # x₀ − E[x₀ | x_t] = (1 − k α)(x₀ − M) − k σ ε
    spread = np.sum(PROBABILITY * (GREYS - M) ** 2)
    error = (1 - k * alpha) ** 2 * spread + k**2 * (1 - abar)
    with np.errstate(divide="ignore"):
        terms = 0.5 * (np.log(variance / small) - 1 + small / variance)
    terms += of_x0**2 * error / (2 * variance)
    eps, weights = np.polynomial.hermite_e.hermegauss(80)
    x = alpha[0] * GREYS[:, None] + np.sqrt(1 - abar[0]) * eps
    mean = M + k[0] * (x - alpha[0] * M)
    upper = np.append(EDGES, np.inf)[:, None]
    lower = np.insert(EDGES, 0, -np.inf)[:, None]
    scale = np.sqrt(variance[0])
    mass = norm.cdf((upper - mean) / scale) - norm.cdf((lower - mean) / scale)
    terms[0] = -(PROBABILITY @ np.log(mass.clip(1e-300)) @ weights) / weights.sum()
    squares = PROBABILITY @ GREYS**2
    last = 0.5 * (abar[-1] * squares - abar[-1] - np.log(1 - abar[-1]))
    return np.append(terms, last) / math.log(2)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_every_term_is_known(variance_type: str, kind: str) -> None:
    scheduler, beta, abar = schedule(variance_type=variance_type, prediction_type=kind)
    _, _, small = posterior(beta, abar)
    variance = (small if variance_type == "fixed_small" else beta).copy()
    variance[0] = small[1]
    expected = expected_terms(beta, abar, variance)
    x0 = pictures()
    found = bound_terms(scheduler, exact(scheduler, abar), x0, torch.Generator().manual_seed(0))
    assert found.shape == (1, 101)
    found = found[0].double().numpy()
    # A mean of 16,384 squares of normals has a standard deviation of 1.1 %.
    assert np.abs(found / expected - 1).max() < 0.04
    assert found[-1] == pytest.approx(expected[-1], rel=1e-3)
    assert found.sum() == pytest.approx(expected.sum(), rel=4e-3)


def test_with_the_best_variance_the_bound_is_the_entropy() -> None:
    """p is then the true reverse of q, and the bound has no slack: −log p(x₀) is what it gives."""
    scheduler, beta, abar = schedule(
        variance_type="learned_range", num_train_timesteps=300, beta_start=4e-3, beta_end=0.06
    )
    of_x0, _, small = posterior(beta, abar)
    best = small + of_x0**2 * left(abar)  # Var[x_{t−1} | x_t]
    low = small.copy()
    low[0] = small[1]
    w = np.log(best / low) / np.log(beta / low)
    assert w.min() >= 0 and w.max() <= 1  # Ho et al., section 3.2: β̃ and β are the extremes
    predict = exact(scheduler, abar, 2 * w - 1)
    x0 = pictures(1, 96)
    found = bound_terms(scheduler, predict, x0, torch.Generator().manual_seed(0)).sum()
    entropy = -np.sum(PROBABILITY * np.log2(PROBABILITY))
    best[0] = np.exp(w[0] * np.log(beta[0]) + (1 - w[0]) * np.log(low[0]))
    # What is left is the decoder's: over 8-bit values the truth is not quite a Gaussian's mass.
    assert expected_terms(beta, abar, best).sum() == pytest.approx(entropy, abs=1.5e-3)
    assert found.item() == pytest.approx(entropy, abs=0.03)
    halfway = exact(scheduler, abar, 0 * w)
    worse = bound_terms(scheduler, halfway, x0, torch.Generator().manual_seed(0)).sum()
    assert worse > found + 0.005


def test_the_estimate_has_no_bias() -> None:
    scheduler, _, abar = schedule()
    predict, x0 = exact(scheduler, abar), pictures(100, 12)
    generator = torch.Generator().manual_seed(0)
    whole = torch.stack([bound_terms(scheduler, predict, x0, generator).sum(1) for _ in range(4)])
    for calls in (2, 5, 12):
        few = torch.stack(
            [bound_estimate(scheduler, predict, x0, generator, calls) for _ in range(60)]
        )
        error = (few.var() / few.numel() + whole.var() / whole.numel()) ** 0.5
        assert error < 0.8 / calls
        assert abs(few.mean() - whole.mean()) < 4 * error
    with pytest.raises(ArgumentError, match="calls is 1"):
        bound_estimate(scheduler, predict, x0, generator, 1)


@pytest.mark.parametrize(("total", "count"), [(1000, 7), (300, 1), (10, 30), (2, 3)])
def test_spans_cover_all_times_once(total: int, count: int) -> None:
    borders = spans(total, count)
    assert borders[0] == 1 and borders[-1] == total
    assert all(a < b for a, b in itertools.pairwise(borders))
    assert len(borders) <= count + 1


def test_the_decoder_is_a_distribution() -> None:
    """Its 256 probabilities sum to 1, wherever the mean and however wide."""
    x = torch.tensor(GREYS, dtype=torch.float32)
    for mean in (-1.3, -1.0, -0.2, 0.0, 0.6, 1.0, 2.0):
        for deviation in (1e-3, 0.01, 0.3, 4.0):
            log_variance = torch.tensor(2 * math.log(deviation))
            nll = decoder_nll(x, torch.tensor(mean), log_variance)
            assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-4)
            mass = np.diff(norm.cdf(EDGES, mean, deviation), prepend=0, append=1)
            likely = mass > 1e-12
            assert np.abs(nll.numpy() + np.log(mass, where=likely))[likely].max() < 5e-3


def test_the_decoder_is_finite_far_off_and_has_gradients() -> None:
    mean = torch.tensor([-40.0, 0.0, 40.0], requires_grad=True)
    log_variance = torch.full((3,), -9.2, requires_grad=True)
    for x in (-1.0, 1 / 255, 1.0):
        nll = decoder_nll(torch.tensor(x), mean, log_variance)
        assert nll.isfinite().all() and (nll >= -1e-6).all()
        for gradient in torch.autograd.grad(nll.sum(), (mean, log_variance)):
            assert gradient.isfinite().all()


def test_kl_of_gaussians_is_its_integral() -> None:
    a, b = (0.3, 0.5), (-0.2, 0.8)
    x = np.linspace(-6, 6, 20001)
    p, q = norm.pdf(x, *a), norm.pdf(x, *b)
    expected = np.sum(p * np.log(p / q)) * (x[1] - x[0])
    arguments = (torch.tensor(value) for m, s in (a, b) for value in (m, 2 * math.log(s)))
    assert gaussian_kl(*arguments).item() == pytest.approx(expected, rel=1e-5)


def test_nothing_is_left_in_the_noise_at_zero_terminal_snr() -> None:
    scheduler, _, _ = schedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert prior_term(scheduler, pictures(2, 8)).tolist() == [0, 0]
    predict: Predict = lambda x, t: torch.zeros_like(x)  # noqa: E731
    found = bound_terms(scheduler, predict, pictures(2, 8), torch.Generator().manual_seed(0))
    assert found.isfinite().all()


def test_clipping_helps_a_network_that_oversteps() -> None:
    scheduler, _, _ = schedule(prediction_type="sample")
    x0 = pictures(1, 16)
    t = torch.tensor([50])
    x_t = scheduler.add_noise(x0, torch.randn_like(x0), t)
    free, clipped = (term(scheduler, x0 * 9, x0, x_t, t, clip) for clip in (None, 1.0))
    assert clipped < free / 4


def test_quantise() -> None:
    exact = torch.tensor(GREYS, dtype=torch.float32)
    near = exact + (torch.rand(256, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.007
    assert (quantise(near) - exact).abs().max() < 1e-6
    assert quantise(torch.tensor([-1.5, 1.5])).tolist() == [-1, 1]


def test_a_variance_that_nobody_knows_is_refused() -> None:
    scheduler, _, abar = schedule(variance_type="learned")
    with pytest.raises(CheckpointError, match="variance_type is 'learned'"):
        bound_terms(scheduler, exact(scheduler, abar), pictures(1, 4), torch.Generator())
