"""The order of accuracy of every sampler, measured where the solution is known in closed form.

For a Gaussian N(m, s²) the exact denoiser is linear and the probability-flow ODE has the solution
x = α m + √(α² s² + σ²) z with z constant. A method with noise must end in the right distribution:
its output is linear in the start and in every draw, so its variance can be computed exactly.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from ldm.samplers import SAMPLERS, DrawNoise, Pair, bind, sample
from ldm.scheduler import Level
from tests.samplers.test_samplers import knowing, scheduler_for

MEAN, SPREAD = 0.7, 0.4


def gaussian_denoise(x: Tensor, level: Level) -> Tensor:
    gain = level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)
    return MEAN + gain * (x - level.alpha * MEAN)


def deviation(level: Level) -> float:
    return math.hypot(level.alpha * SPREAD, level.sigma)


def gaussian_solution(z: Tensor, level: Level) -> Tensor:
    return level.alpha * MEAN + deviation(level) * z


def reverse_mean(x: Tensor, a: Level, b: Level) -> Tensor:
    """E[x_b | x_a] under the forward process: the mean of the reverse SDE's solution."""
    gain = a.alpha / b.alpha * (deviation(b) / deviation(a)) ** 2
    return b.alpha * MEAN + gain * (x - a.alpha * MEAN)


def uniform_in_lambda(n: int) -> list[Pair]:
    levels = []
    for i in range(n + 1):
        lam = -3 + 5 * i / n
        alpha = 1 / math.sqrt(1 + math.exp(-2 * lam))
        levels.append(Level(500.0, alpha, math.sqrt(1 - alpha**2)))
    return list(itertools.pairwise(levels))


def no_noise() -> Tensor:
    raise AssertionError("a deterministic method drew noise")


def final(name: str, x: Tensor, steps: list[Pair], noise: DrawNoise = no_noise) -> Tensor:
    step = bind(scheduler_for(name, {}), name)
    *_, (x, _, _) = sample(step, knowing(gaussian_denoise), x, steps, noise)
    return x


def orders(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@pytest.mark.parametrize(
    ("name", "order", "counts"),
    [
        ("ddim", 1, (40, 80, 160, 320)),
        ("euler", 1, (40, 80, 160, 320)),
        ("dpmpp_2m", 2, (40, 80, 160, 320)),
        ("dpmpp_2s", 2, (40, 80, 160, 320)),
        ("heun", 2, (20, 40, 80, 160)),
        ("dpm2", 2, (20, 40, 80, 160)),
        ("deis", 2, (40, 80, 160, 320)),
        ("lms", 3.75, (20, 40, 80, 160)),  # of order 4 but for its first three steps
        ("unipc", 3, (20, 40, 80, 160)),
        ("pndm", 2, (10, 20, 40, 80)),
    ],
)
def test_order_of_the_ode(name: str, order: float, counts: tuple[int, ...]) -> None:
    """Halving the step divides the error by 2^order."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = []
    for n in counts:
        steps = uniform_in_lambda(n)
        x = final(name, gaussian_solution(z, steps[0][0]), steps)
        errors.append((x - gaussian_solution(z, steps[-1][1])).abs().max().item())
    assert orders(errors)[-1] == pytest.approx(order, abs=0.15), f"{errors}, {orders(errors)}"


def errors_of_the_variance(name: str, counts: tuple[int, ...]) -> list[float]:
    errors = []
    for n in counts:
        steps = uniform_in_lambda(n)
        # One row for what becomes of the start's deviation, one for each draw, one for the mean.
        draws = (2 if SAMPLERS[name].calls == 2 else 1) * n
        x = torch.full((draws + 2, 1), steps[0][0].alpha * MEAN, dtype=torch.float64)
        x[0] += deviation(steps[0][0])
        drawn = 0

        def noise(x: Tensor = x) -> Tensor:
            nonlocal drawn
            drawn += 1
            return torch.zeros_like(x).index_fill_(0, torch.tensor(drawn), 1.0)

        x = final(name, x, steps, noise)
        end = steps[-1][1]
        assert (x[-1] - end.alpha * MEAN).abs().item() < 1e-9  # the mean stays the mean
        variance = (x[:-1] - x[-1]).square().sum().item()
        errors.append(abs(variance - deviation(end) ** 2))
    return errors


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("euler_a", 1),
        ("ddpm", 1),
        ("dpm2_a", 2),
        ("dpmpp_2s_a", 2),
        ("dpmpp_2m_sde", 2),
        ("dpmpp_3m_sde", 2),
        ("dpmpp_sde", 2),
    ],
)
def test_order_of_the_distribution(name: str, order: int) -> None:
    """Of the variance. "3M" is of third order only in name: see the weight of its D₂."""
    errors = errors_of_the_variance(name, (20, 40, 80, 160, 320))
    assert orders(errors)[-1] == pytest.approx(order, abs=0.15), f"{errors}, {orders(errors)}"
