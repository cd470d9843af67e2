"""What is minimised: targets, the bound's part of it, and where its gradient stops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.config import SchedulerConfig
from ldm.errors import ArgumentError
from ldm.likelihood import quantise
from ldm.scheduler import DDPMScheduler
from ldm.training.batches import draw_times
from ldm.training.objectives import diffusion_loss, diffusion_weight

KINDS = ("epsilon", "sample", "v_prediction", "mean")


def scheduler(**settings: object) -> DDPMScheduler:
    return DDPMScheduler(SchedulerConfig.from_dict({"num_train_timesteps": 50, **settings}))


def batch(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = quantise(torch.rand(count, 2, 5, 4, generator=generator) * 2 - 1)
    t = torch.tensor([0, 1, 7, 20, 40, 49])[:count]
    return x0, torch.randn(x0.shape, generator=generator), t


def reference(sched: DDPMScheduler, output: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """L_t of each picture in bits per dimension, in float64, from the papers' formulas alone."""
    beta = torch.linspace(1e-4, 0.02, 50, dtype=torch.float64)
    abar = torch.cumprod(1 - beta, 0)
    terms = []
    for o, x, e, i in zip(output.double(), x0.double(), noise.double(), t.tolist(), strict=True):
        before = abar[i - 1] if i else torch.ones(())
        x_t = abar[i].sqrt() * x + (1 - abar[i]).sqrt() * e
        eps, v = o.chunk(2)
        predicted = (x_t - (1 - abar[i]).sqrt() * eps) / abar[i].sqrt()

        def mean(clean: Tensor, x_t: Tensor = x_t, i: int = i, before: Tensor = before) -> Tensor:
            left = before.sqrt() * beta[i] * clean
            return (left + (1 - beta[i]).sqrt() * (1 - before) * x_t) / (1 - abar[i])

        small = (1 - before) / (1 - abar[i]) * beta[i]
        floor = small if i else (1 - abar[0]) / (1 - abar[1]) * beta[1]
        variance = torch.exp((v + 1) / 2 * beta[i].log() + (1 - v) / 2 * floor.log())
        if i:
            gap = (mean(x) - mean(predicted)) ** 2
            nats = 0.5 * (torch.log(variance / small) + (small + gap) / variance - 1)
        else:
            p = torch.distributions.Normal(mean(predicted), variance.sqrt())
            high = torch.where(x > 0.999, torch.ones(()).double(), p.cdf(x + 1 / 255))
            low = torch.where(x < -0.999, torch.zeros(()).double(), p.cdf(x - 1 / 255))
            nats = -torch.log(high - low)
        terms.append(nats.mean() / math.log(2))
    return torch.stack(terms)


def test_the_bound_is_an_independent_implementations() -> None:
    learned = scheduler(variance_type="learned_range")
    x0, noise, t = batch()
    generator = torch.Generator().manual_seed(1)
    v = torch.rand(x0.shape, generator=generator) * 2 - 1
    output = torch.cat([noise + 0.1 * torch.randn(x0.shape, generator=generator), v], dim=1)
    vlb, metrics = diffusion_loss(learned, output, x0, noise, t, "vlb")
    expected = 50 * reference(learned, output, x0, noise, t).mean()
    assert vlb.item() == pytest.approx(expected.item(), rel=2e-3)
    assert metrics["vlb"] == vlb
    hybrid, metrics = diffusion_loss(learned, output, x0, noise, t, "hybrid", vlb_weight=0.001)
    simple = (output[:, :2] - noise).square().mean()
    assert metrics["mse"].item() == pytest.approx(simple.item(), rel=1e-5)
    assert hybrid.item() == pytest.approx((simple + 0.001 * expected).item(), rel=1e-4)


def test_the_bound_teaches_only_the_variance() -> None:
    """Nichol & Dhariwal 2021, section 3.1: its gradient stops at the mean."""
    learned = scheduler(variance_type="learned_range")
    x0, noise, t = batch()
    output = torch.cat([noise * 0.9, torch.zeros_like(x0)], dim=1).requires_grad_()
    loss, _ = diffusion_loss(learned, output, x0, noise, t, "hybrid", vlb_weight=5.0)
    (gradient,) = torch.autograd.grad(loss, output)
    simple = 2 * (output.detach()[:, :2] - noise) / noise.numel()
    assert (gradient[:, :2] - simple).abs().max() < 1e-7
    assert gradient[:, 2:].isfinite().all() and (gradient[:, 2:].abs().amax((1, 2, 3)) > 0).all()
    loss, _ = diffusion_loss(learned, output, x0, noise, t, "vlb")
    (whole,) = torch.autograd.grad(loss, output)
    assert whole.isfinite().all() and (whole[:, :2] - simple).abs().max() > 1e-3


def test_learning_the_variance_finds_the_best_one() -> None:
    """Data of known spread: Var[x_{t−1} | x_t] is what the bound's gradient goes to."""
    learned, spread = scheduler(variance_type="learned_range"), 0.5
    x0 = spread * torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    t = torch.full((400,), 25)
    abar, before = learned.alphas_cumprod[[25, 24]].double().tolist()
    beta = 1 - abar / before
    x_t = learned.add_noise(x0, noise, t)
    gain = abar**0.5 * spread**2 / (abar * spread**2 + 1 - abar)
    eps = learned.to_eps(
        learned.from_x0(gain * x_t, x_t, learned.levels(t, x_t)), x_t, learned.levels(t, x_t)
    )
    v = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([v], max_iter=30)

    def closure() -> Tensor:
        optimizer.zero_grad()
        output = torch.cat([eps, v.expand_as(x0)], dim=1)
        loss, _ = diffusion_loss(learned, output, x0, noise, t, "hybrid", vlb_weight=1e3)
        loss.backward()
        return loss

    optimizer.step(closure)
    small = (1 - before) / (1 - abar) * beta
    left = spread**2 * (1 - abar) / (abar * spread**2 + 1 - abar)
    best = small + (before**0.5 * beta / (1 - abar)) ** 2 * left
    found = learned.log_variance(t[:1], x0[:1], v.detach().expand(1, 1, 1, 1)).exp().item()
    assert small < best < beta
    assert found == pytest.approx(best, rel=3e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_costs_nothing(kind: str) -> None:
    sched = scheduler(prediction_type=kind)
    x0, noise, t = batch()
    target = sched.target(x0, noise, t)
    assert diffusion_loss(sched, target, x0, noise, t)[0] == 0
    worse, metrics = diffusion_loss(sched, target + 0.5, x0, noise, t)
    assert worse.item() == pytest.approx(0.25, rel=1e-4) and metrics["mse"] == worse


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_the_same_whatever_is_predicted(kind: str) -> None:
    """It weighs what is predicted by what it means for x̂₀."""
    x0, noise, t = batch()
    eps = scheduler()
    x_t = eps.add_noise(x0, noise, t)
    clean = (x0 + 0.05).clamp(-1, 1)
    losses = []
    for sched in (eps, scheduler(prediction_type=kind)):
        output = sched.from_x0(clean, x_t, sched.levels(t, x_t))
        losses.append(diffusion_loss(sched, output, x0, noise, t, "vlb")[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_what_cannot_be_minimised_is_refused() -> None:
    x0, noise, t = batch()
    with pytest.raises(ArgumentError, match="objective is 'best'; expected one of simple"):
        diffusion_loss(scheduler(), noise, x0, noise, t, "best")
    with pytest.raises(ArgumentError, match="set it to 'learned_range'"):
        diffusion_loss(scheduler(), noise, x0, noise, t, "hybrid")
    with pytest.raises(ArgumentError, match="min_snr_gamma does not go with"):
        diffusion_weight(scheduler(prediction_type="mean"), t, 5.0)


def test_times_are_drawn_evenly_and_everywhere() -> None:
    sched = scheduler()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_times(sched, 25, generator) for _ in range(400)])
    assert torch.equal(drawn.sort(1).values // 2, torch.arange(25).expand(400, 25))
    counts = torch.bincount(drawn.flatten(), minlength=50)
    assert counts.min() > 150 and counts.max() < 250
    assert (drawn[:, 0] > 25).float().mean() == pytest.approx(0.5, abs=0.1)


def test_times_of_a_logit_normal() -> None:
    """A quarter, half and three quarters lie below the quartiles; the mean shifts them."""
    sched, generator = scheduler(), torch.Generator().manual_seed(0)
    for mean, std in ((0.0, 1.0), (-0.5, 0.7)):
        drawn = torch.cat([draw_times(sched, 25, generator, mean, std) for _ in range(400)])
        assert drawn.min() >= 0 and drawn.max() < 50
        for share, quantile in ((0.25, -0.6745), (0.5, 0.0), (0.75, 0.6745)):
            below = 50 * torch.sigmoid(torch.tensor(mean + std * quantile)).item()
            # Whole times are at most one share of 1/50 at the density of that place off.
            assert (drawn < below).float().mean() == pytest.approx(share, abs=0.05)
