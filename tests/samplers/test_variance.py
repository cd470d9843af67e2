"""The variance of DDPM's steps: β, β̃, and what a network has learned, also respaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.config import SchedulerConfig
from ldm.samplers import Denoised, bind, from_config, plan, sample
from ldm.samplers.ddim import DDIM
from ldm.samplers.ddpm import DDPM, variance
from ldm.scheduler import CLEAN, DDPMScheduler, Level
from tests.helpers.networks import difference

SHAPE = (2, 3, 4, 6)
COSINE = {"beta_schedule": "squaredcos_cap_v2"}


def network(x: Tensor, t: float, learned: str) -> tuple[Tensor, Tensor]:
    """(ε̂, v): smooth nonlinear functions of all of x and t; v is a variance for "learned"."""
    eps = 0.8 * torch.tanh(x + 0.4 * x.roll(1, -1)) + 0.3 * torch.cos(2 * x + t / 150)
    v = torch.sin(x.roll(1, -2) + t / 90)
    return eps, 0.01 * (1.1 + v) if learned == "learned" else v


class Network:
    """A denoiser whose network has learned its variance."""

    def __init__(self, learned: str) -> None:
        self.learned = learned

    def __call__(self, x: Tensor, level: Level, step: int) -> Denoised:
        eps, v = network(x, level.t, self.learned)
        return Denoised((x - level.sigma * eps) / level.alpha, v)


def ours(kind: str, n: int, **settings: Any) -> Tensor:
    scheduler = DDPMScheduler(SchedulerConfig(variance_type=kind, **settings))
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(SHAPE, generator=generator)
    steps = plan(scheduler, "ddpm", n)
    step = bind(scheduler, "ddpm", steps=steps)
    noise = lambda: torch.randn(SHAPE, generator=generator)  # noqa: E731
    *_, (x, _, _) = sample(step, Network(kind), x, steps, noise)
    return x


def theirs(kind: str, n: int, **settings: Any) -> Tensor:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(variance_type=kind, **settings)
    # In float32 its β = 1 − ᾱ_t/ᾱ_{t−1} is 9e-4 off after 1000 steps.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(n)
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(SHAPE, generator=generator)
    for t in scheduler.timesteps:
        said = network(x, t.item(), kind)
        output = torch.cat(said, dim=1) if kind.startswith("learned") else said[0]
        x = scheduler.step(output, t, x, generator=generator).prev_sample.float()
    return x


@pytest.mark.parity
@pytest.mark.parametrize("n", [1, 10, 250, 1000])
@pytest.mark.parametrize("settings", [{}, COSINE], ids=["linear", "cosine"])
def test_learned_range_is_diffusers(n: int, settings: dict[str, Any]) -> None:
    want = theirs("learned_range", n, **settings)
    assert difference(ours("learned_range", n, **settings), want) <= 1e-4
    if 1 < n < 1000:
        assert difference(ours("fixed_small", n, **settings), want) > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("kind", ["learned_range", "learned", "fixed_small_log"])
def test_the_others_are_diffusers(kind: str, spacing: str) -> None:
    for n in (3, 20):
        want = theirs(kind, n, timestep_spacing=spacing)
        assert difference(ours(kind, n, timestep_spacing=spacing), want) <= 1e-4


def test_large_counted_in_logarithms_is_large() -> None:
    """diffusers takes the root of a negative logarithm there."""
    assert torch.equal(ours("fixed_large_log", 10), ours("fixed_large", 10))
    assert difference(ours("fixed_large", 10), ours("fixed_small", 10)) > 1e-2


@pytest.mark.parametrize("n", [10, 250])
def test_the_formula_respaced(n: int) -> None:
    """Nichol & Dhariwal 2021, eq. 15 and section 4, written out from β with NumPy."""
    beta = np.linspace(1e-4, 0.02, 1000)
    kept = np.arange(n) * (1000 // n)
    abar = np.cumprod(1 - beta)[kept]
    before = np.concatenate([[1.0], abar[:-1]])
    large = 1 - abar / before  # β of the respaced process
    small = (1 - before) / (1 - abar) * large
    v = torch.linspace(-1.2, 1.2, 5, dtype=torch.float64)
    steps = plan(DDPMScheduler(SchedulerConfig()), "ddpm", n)[::-1]
    for i in range(1, n):
        a, b = steps[i]
        beta_i = 1 - (a.alpha / b.alpha) ** 2
        got = variance("learned_range", beta_i * (b.sigma / a.sigma) ** 2, beta_i, v)
        w = (v.numpy() + 1) / 2
        want = np.exp(w * np.log(large[i]) + (1 - w) * np.log(small[i]))
        np.testing.assert_allclose(got.numpy(), want, rtol=2e-4)  # ᾱ is float32


def test_the_ends_of_the_range_are_the_fixed_variances() -> None:
    v = torch.tensor([-1.0, 0.0, 1.0])
    got = variance("learned_range", 0.01, 0.04, v)
    assert got.tolist() == pytest.approx([0.01, 0.02, 0.04])
    assert variance("fixed_small", 0.01, 0.04, None) == 0.01
    assert variance("fixed_large", 0.01, 0.04, None) == 0.04
    assert variance("learned_range", 0.0, 0.04, v)[2].item() == pytest.approx(0.04)


def test_a_gradient_shifts_the_mean_by_the_variance() -> None:
    """Dhariwal & Nichol 2021, algorithm 1; not at t = 0."""
    a, b = (DDPMScheduler(SchedulerConfig()).level(t) for t in (500, 400))
    x, gradient, v = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))

    class Guided:
        def __init__(self, gradient: Tensor | None) -> None:
            self.gradient = gradient

        def __call__(self, x: Tensor, level: Level) -> Denoised:
            return Denoised(x.tanh(), v, self.gradient)

    def step(gradient: Tensor | None, a: Level, b: Level, kind: str) -> Tensor:
        draw = lambda: torch.ones(SHAPE)  # noqa: E731
        return DDPM(Guided(gradient), draw, 0.5, kind).step(x, a, b)[0]

    beta = 1 - (a.alpha / b.alpha) ** 2
    small = beta * (b.sigma / a.sigma) ** 2
    wide = ((v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(small)).exp()
    for kind, s in {"fixed_small": small, "fixed_large": beta, "learned_range": wide}.items():
        shift = step(gradient, a, b, kind) - step(None, a, b, kind)
        assert difference(shift, s * gradient) <= 1e-5
    last = a._replace(t=0.0)
    assert torch.equal(
        step(gradient, last, CLEAN, "fixed_large"), step(None, last, CLEAN, "fixed_large")
    )


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_gradient_shifts_ddim_past_its_clamp(clip: float | None, eta: float) -> None:
    """Dhariwal & Nichol 2021, algorithm 2: ε̂ − σ g, and the x̂₀ that goes with it."""
    model = DDPMScheduler(SchedulerConfig())
    a, b = model.level(500), model.level(400)
    x, eps, gradient = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))

    class Guided:
        scale = 3.0

        def __call__(self, x: Tensor, level: Level) -> Denoised:
            return Denoised((x - level.sigma * eps) / level.alpha, None, self.scale * gradient)

    def step(denoise: Guided) -> Tensor:
        return DDIM(denoise, lambda: torch.ones(SHAPE), eta, clip).step(x, a, b)[0]

    free = Guided()
    free.scale = 0.0
    s = eta * b.sigma / a.sigma * (1 - (a.alpha / b.alpha) ** 2) ** 0.5
    shifted = eps - a.sigma * 3 * gradient
    of_x0 = (x - a.sigma * shifted) / a.alpha - (x - a.sigma * eps) / a.alpha
    want = b.alpha * of_x0 + (b.sigma**2 - s**2) ** 0.5 * (shifted - eps)
    assert difference(step(Guided()) - step(free), want) <= 1e-5


@pytest.mark.parametrize("kind", ["learned_range", "learned", "fixed_small_log", "fixed_large_log"])
def test_configs_with_it_are_drawn(kind: str) -> None:
    assert from_config(SchedulerConfig(variance_type=kind)).name == "ddpm"
