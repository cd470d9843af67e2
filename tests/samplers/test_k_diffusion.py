"""Samplers against k-diffusion's formulas, written again here as they stand there: over σ/α alone,
in float64, on any prediction, from the start and from the middle.

This is the reference where diffusers has no such sampler (DPM++ 2S a), refuses what we can do
("sample" with DPM2 and DPM++ SDE), or is wrong: LMS started in the middle, DPM++ 3M SDE.
"""

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm.samplers import bind, plan, sample
from ldm.scheduler import Level
from tests.samplers.test_accuracy import gaussian_denoise, reverse_mean
from tests.samplers.test_samplers import (
    PREDICTIONS,
    knowing,
    last,
    network,
    scheduler_for,
    theirs_for,
)

pytestmark = pytest.mark.parity

SHAPE = (2, 4, 5, 7)
Model = Callable[[Tensor, float], Tensor]  # (x, σ; −σ between two steps) → denoised
Draw = Callable[[], Tensor]


def ancestral(sigma: float, sigma_next: float) -> tuple[float, float]:
    """get_ancestral_step with eta = 1: (σ_down, σ_up)."""
    up = min(sigma_next, (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    return (sigma_next**2 - up**2) ** 0.5, up


def to_d(x: Tensor, sigma: float, denoised: Tensor) -> Tensor:
    return (x - denoised) / sigma


def euler_ancestral(model: Model, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    for s, n in itertools.pairwise(sigmas):
        denoised = model(x, s)
        down, up = ancestral(s, n)
        x = x + to_d(x, s, denoised) * (down - s) + draw() * up
    return x


def heun(model: Model, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    for s, n in itertools.pairwise(sigmas):
        d = to_d(x, s, model(x, s))
        if n == 0:
            x = x + d * (n - s)
        else:
            x_2 = x + d * (n - s)
            x = x + (d + to_d(x_2, n, model(x_2, n))) / 2 * (n - s)
    return x


def dpm_2(model: Model, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    for s, n in itertools.pairwise(sigmas):
        d = to_d(x, s, model(x, s))
        if n == 0:
            x = x + d * (n - s)
        else:
            mid = math.exp((math.log(s) + math.log(n)) / 2)
            x_2 = x + d * (mid - s)
            x = x + to_d(x_2, mid, model(x_2, -mid)) * (n - s)
    return x


def dpm_2_ancestral(model: Model, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    for s, n in itertools.pairwise(sigmas):
        d = to_d(x, s, model(x, s))
        down, up = ancestral(s, n)
        if down == 0:
            x = x + d * (down - s)
        else:
            mid = math.exp((math.log(s) + math.log(down)) / 2)
            x_2 = x + d * (mid - s)
            x = x + to_d(x_2, mid, model(x_2, -mid)) * (down - s) + draw() * up
    return x


def lms(model: Model, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    """The polynomials integrated by Gauss-Legendre, exact for them; k-diffusion asks scipy."""
    points, weights = torch.tensor(
        [  # four nodes, exact to degree 7
            [0.3399810435848563, 0.6521451548625461],
            [-0.3399810435848563, 0.6521451548625461],
            [0.8611363115940526, 0.3478548451374538],
            [-0.8611363115940526, 0.3478548451374538],
        ],
        dtype=torch.float64,
    ).T
    ds: list[Tensor] = []
    for i in range(len(sigmas) - 1):
        ds.append(to_d(x, sigmas[i], model(x, sigmas[i])))
        order = min(i + 1, 4)
        start, end = sigmas[i], sigmas[i + 1]
        tau = (end + start) / 2 + points * (end - start) / 2
        for j in range(order):
            basis = torch.ones_like(tau)
            for k in range(order):
                if j != k:
                    basis = basis * (tau - sigmas[i - k]) / (sigmas[i - j] - sigmas[i - k])
            x = x + (weights * basis).sum() * (end - start) / 2 * ds[-1 - j]
    return x


def dpmpp_2s_ancestral(model: Model, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    for s, n in itertools.pairwise(sigmas):
        denoised = model(x, s)
        down, up = ancestral(s, n)
        if down == 0:
            x = x + to_d(x, s, denoised) * (down - s)
        else:
            t, t_next = -math.log(s), -math.log(down)
            h = t_next - t
            mid = t + h / 2
            x_2 = math.exp(-mid) / math.exp(-t) * x - math.expm1(-h / 2) * denoised
            denoised_2 = model(x_2, math.exp(-mid))
            x = math.exp(-t_next) / math.exp(-t) * x - math.expm1(-h) * denoised_2
        if n > 0:
            x = x + draw() * up
    return x


def dpmpp_sde(model: Model, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    """The Brownian motion over σ is the sum of what is drawn, not a tree."""
    for s, n in itertools.pairwise(sigmas):
        denoised = model(x, s)
        if n == 0:
            x = x + to_d(x, s, denoised) * (n - s)
            continue
        t, t_next = -math.log(s), -math.log(n)
        mid = math.exp(-(t + (t_next - t) / 2))
        moved = (s - mid) ** 0.5 * draw()
        down, up = ancestral(s, mid)
        t_down = -math.log(down)
        x_2 = math.exp(-t_down) / s * x - math.expm1(t - t_down) * denoised
        x_2 = x_2 + moved / (s - mid) ** 0.5 * up
        denoised_2 = model(x_2, -mid)
        moved = moved + (mid - n) ** 0.5 * draw()
        down, up = ancestral(s, n)
        t_down = -math.log(down)
        x = math.exp(-t_down) / s * x - math.expm1(t - t_down) * denoised_2
        x = x + moved / (s - n) ** 0.5 * up
    return x


def dpmpp_2m_sde(model: Model, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    old, h_last = None, 0.0
    for s, n in itertools.pairwise(sigmas):
        denoised, eps = model(x, s), draw()
        if n == 0:
            x = denoised
        else:
            h = math.log(s) - math.log(n)
            x = n / s * math.exp(-h) * x - math.expm1(-2 * h) * denoised
            if old is not None:
                r = h_last / h
                x = x - 0.5 * math.expm1(-2 * h) * (1 / r) * (denoised - old)
            x = x + eps * n * (-math.expm1(-2 * h)) ** 0.5
            h_last = h
        old = denoised
    return x


def dpmpp_3m_sde(model: Model, x: Tensor, sigmas: list[float], draw: Draw) -> Tensor:
    denoised_1 = denoised_2 = None
    h_1 = h_2 = 0.0
    for s, n in itertools.pairwise(sigmas):
        denoised, eps = model(x, s), draw()
        if n == 0:
            x = denoised
            continue
        h = math.log(s) - math.log(n)
        h_eta = 2 * h
        x = math.exp(-h_eta) * x - math.expm1(-h_eta) * denoised
        if denoised_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - denoised_1) / r0, (denoised_1 - denoised_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            phi_2 = math.expm1(-h_eta) / h_eta + 1
            phi_3 = phi_2 / h_eta - 0.5
            x = x + phi_2 * d1 - phi_3 * d2
        elif denoised_1 is not None:
            d = (denoised - denoised_1) / (h_1 / h)
            x = x + (math.expm1(-h_eta) / h_eta + 1) * d
        x = x + eps * n * (-math.expm1(-2 * h)) ** 0.5
        denoised_1, denoised_2, h_1, h_2 = denoised, denoised_1, h, h_1
    return x


METHODS: dict[str, Callable[[Model, Tensor, list[float], Draw], Tensor]] = {
    "euler_a": euler_ancestral,
    "heun": heun,
    "dpm2": dpm_2,
    "dpm2_a": dpm_2_ancestral,
    "lms": lms,
    "dpmpp_2s_a": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
}


def both(name: str, prediction: str, schedule: str, n: int, start: int) -> tuple[Tensor, Tensor]:
    """Final latents of ours and of the method above, in float64, from the same noise."""
    scheduler = scheduler_for(name, {"prediction_type": prediction})
    steps = plan(scheduler, name, n, schedule)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(n), dtype=torch.float64)

    def x0_of(x: Tensor, level: Level) -> Tensor:
        """As scheduler.to_x0, which rounds to float32."""
        out = network(x, level.t)
        if prediction == "epsilon":
            return (x - level.sigma * out) / level.alpha
        return out if prediction == "sample" else level.alpha * x - level.sigma * out

    def model(y: Tensor, sigma: float) -> Tensor:
        known = {a.sigma / a.alpha: a for a, _ in steps}  # whose t may be rounded
        nearest = min(known, key=lambda ratio: abs(ratio - sigma))
        close = abs(nearest / sigma - 1) < 1e-9
        level = known[nearest] if close else scheduler.level_of(abs(sigma))
        return x0_of(y * level.alpha, level)

    def draw() -> Draw:
        generator = torch.Generator().manual_seed(1)
        return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)

    steps = steps[start:]
    first, end = steps[0][0], steps[-1][1]
    sigmas = [a.sigma / a.alpha for a, _ in steps] + [end.sigma / end.alpha]
    method = bind(scheduler, name, 0.0, steps)
    ours = last(sample(method, knowing(x0_of), x, steps, draw()))
    return ours, METHODS[name](model, x / first.alpha, sigmas, draw()) * end.alpha


@pytest.mark.parametrize("schedule", ["normal", "karras", "ays"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", METHODS)
def test_final_latents_are_k_diffusions(name: str, prediction: str, schedule: str) -> None:
    for n in (1, 2, 3, 5, 20):
        for start in {0, n // 2}:
            ours, theirs = both(name, prediction, schedule, n, start)
            assert theirs.std() > 0.005
            error = (ours - theirs).abs().max().item()
            assert error <= 1e-8 * max(1, theirs.abs().max()), f"{n} steps from {start}: {error}"


def test_diffusers_lms_is_wrong_in_the_middle() -> None:
    """Why it is not the reference there: its weights add up to another step than is to be made.

    An exact denoiser of a point mass must see noise of one size, and come to the point.
    """
    theirs = copy.deepcopy(theirs_for("lms", {}))
    theirs.set_timesteps(20)
    theirs.set_begin_index(10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 50, 50, generator=generator) * theirs.sigmas[10]
    seen = []
    for t in theirs.timesteps[10:]:
        sigma = theirs.sigmas[10 + len(seen)]
        theirs.scale_model_input(x, t)
        seen.append((x / sigma).std().item())
        x = theirs.step(x / sigma, t, x).prev_sample
    assert min(seen) < 0.9


def test_diffusers_3m_sde_is_less_accurate_than_ours() -> None:
    """Why it is not the reference: −½ − … for ½ − … in the weight of the second difference.

    A Gaussian's exact denoiser, and no noise: then the SDE's mean is known in closed form.
    """
    scheduler = scheduler_for("dpmpp_3m_sde", {"prediction_type": "sample"})
    theirs = copy.deepcopy(theirs_for("dpmpp_3m_sde", {"prediction_type": "sample"}))
    theirs.set_timesteps(40)
    steps = plan(scheduler, "dpmpp_3m_sde", 40)[5:-1]
    first, end = steps[0][0], steps[-1][1]
    x = y = torch.linspace(-2, 2, 9, dtype=torch.float64)
    exact = reverse_mean(x, first, end)
    step = bind(scheduler, "dpmpp_3m_sde")
    ours = last(sample(step, knowing(gaussian_denoise), x, steps, lambda: torch.zeros_like(x)))
    theirs.set_begin_index(5)
    for (a, _), t in zip(steps, theirs.timesteps[5:], strict=False):
        y = theirs.step(
            gaussian_denoise(y, a), t, y, variance_noise=torch.zeros(9)
        ).prev_sample.double()
    assert 5 * (ours - exact).abs().max() < (y - exact).abs().max()
