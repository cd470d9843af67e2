"""Guidance: rescaled, within an interval, and off without cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.config import SchedulerConfig
from ldm.denoiser import Denoiser
from ldm.errors import ArgumentError
from ldm.guidance import ClassifierFree, Guidance, Interval, Modifier, classifier_free
from ldm.pipeline import Pipeline
from ldm.scheduler import CLEAN, DDPMScheduler, Level
from ldm.text.conditioning import Conditioning, Prompted, Script
from tests.helpers.families import for_task
from tests.helpers.networks import difference
from tests.helpers.pictures import assert_same, draw, draw_theirs, generator

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]

ARGUMENTS = {"num_inference_steps": 4, "height": 40, "width": 64}


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaled_guidance_is_diffusers(models: Any, family: str, rescale: float) -> None:
    ours, theirs = models(family)
    arguments = {"guidance_scale": 9.0, "guidance_rescale": rescale, **ARGUMENTS}
    want = draw_theirs(for_task(theirs, "text"), generator=generator(3), **arguments)
    got = draw(ours, seed=3, **arguments)
    assert_same(got, want)
    plain = draw(ours, seed=3, guidance_scale=9.0, **ARGUMENTS)
    assert difference(got[0], plain[0]) > 1e-2


def sizes(pipe: Pipeline, **arguments: Any) -> list[int]:
    """How many rows the U-Net is asked about at each step."""
    seen: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        pipe("a red car", seed=3, output_type="latent", **(ARGUMENTS | arguments))
    finally:
        handle.remove()
    return seen


def test_guidance_costs_nothing_where_it_is_off(models: Any) -> None:
    ours, _ = models("sd")
    levels = [a.sigma / a.alpha for a, _ in ours.schedule(4)[0]]
    between = (levels[2] + levels[1]) / 2, (levels[1] + levels[0]) / 2
    assert sizes(ours) == [2, 2, 2, 2]
    assert sizes(ours, guidance_scale=1.0) == [1, 1, 1, 1]
    assert sizes(ours, guidance_interval=between) == [1, 2, 1, 1]
    assert sizes(ours, guidance_interval=(levels[2], math.inf)) == [2, 2, 1, 1]
    assert sizes(ours, guidance_interval=(0, levels[2])) == [1, 1, 2, 2]


def test_the_interval_of_everything_changes_nothing(models: Any) -> None:
    ours, _ = models("sd")
    one = draw(ours, seed=3, **ARGUMENTS)[0]
    two = draw(ours, seed=3, guidance_interval=(0.0, 1e9), **ARGUMENTS)[0]
    assert torch.equal(one, two)


def test_rescaling_gives_back_the_contrast() -> None:
    rng = torch.Generator().manual_seed(0)
    cond, uncond = (torch.randn(3, 4, 8, 8, generator=rng) for _ in "ab")
    for rescale in (0.0, 0.5, 1.0):
        guidance = classifier_free(7.5, rescale)
        found = guidance.combine(cond, uncond, cond, CLEAN).std((1, 2, 3))
        plain = (uncond + 7.5 * (cond - uncond)).std((1, 2, 3))
        want = rescale * cond.std((1, 2, 3)) + (1 - rescale) * plain
        assert (found - want).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": math.nan}, "guidance_scale is nan"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale is 1\.5; it must be in \[0, 1\]"),
        ({"guidance_rescale": math.nan}, "guidance_rescale is nan"),
        ({"guidance_interval": (5, 1)}, "guidance_interval is 5 to 1"),
        ({"guidance_interval": (-1, 1)}, "guidance_interval is -1 to 1"),
        ({"guidance_interval": (0, math.nan)}, "guidance_interval is 0 to nan"),
    ],
)
def test_wrong_numbers(models: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        models("sd")[0]("a red car", **arguments)


# A further method is one small object: nothing else changes.


@dataclass(frozen=True)
class Projected(Modifier):
    """APG (Sadat et al. 2024) without its momentum and bound: only what is orthogonal to x̂₀."""

    scale: float
    scheduler: DDPMScheduler

    def active(self, level: Level) -> bool:
        return True

    def combine(self, cond: Tensor, uncond: Tensor, x: Tensor, level: Level) -> Tensor:
        x0, without = (self.scheduler.to_x0(each, x, level) for each in (cond, uncond))
        guided = x0 + (self.scale - 1) * orthogonal(x0 - without, x0)
        return self.scheduler.from_x0(guided, x, level)


@dataclass(frozen=True)
class PerpendicularNegative(Modifier):
    """Perp-Neg (Armandpour et al. 2023): of negative texts, what is orthogonal to the others."""

    def join(self, shifts: Tensor, weights: Tensor) -> Tensor:
        main = self.inner.join(shifts, weights.clamp(min=0))
        return main + orthogonal(self.inner.join(shifts, weights.clamp(max=0)), main)


def orthogonal(x: Tensor, to: Tensor) -> Tensor:
    dims = tuple(range(1, x.ndim))
    share = (x * to).sum(dims, keepdim=True) / to.square().sum(dims, keepdim=True)
    return x - share * to


class Network(nn.Module):
    """Predicts the context of each row; keeps how many rows and which other inputs it saw."""

    config = SimpleNamespace(time_cond_proj_dim=None)

    def __init__(self) -> None:
        super().__init__()
        self.like = nn.Parameter(torch.zeros(()))
        self.rows: list[int] = []
        self.scales: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor, **more: Tensor) -> Tensor:
        self.rows.append(len(x))
        self.scales += more.values()
        return context.view_as(x)


LEVEL = Level(t=500.0, alpha=0.6, sigma=0.8)
X = torch.randn(1, 1, 4, 2, generator=torch.Generator().manual_seed(0))


def texts(*weights: float) -> tuple[list[Prompted], list[Tensor]]:
    """A picture of texts with random predictions, and these: of the negative one, of each text."""
    rng = torch.Generator().manual_seed(1)
    outputs = [torch.randn(4, 2, generator=rng) for _ in range(len(weights) + 1)]
    negative, *scripts = (Script(((9, Conditioning(output)),)) for output in outputs)
    scripts = [replace(script, weight=w) for script, w in zip(scripts, weights, strict=True)]
    return [Prompted(tuple(scripts), negative)], [output.view_as(X) for output in outputs]


def test_a_projected_guidance_is_one_object() -> None:
    scheduler = DDPMScheduler(SchedulerConfig())
    prompted, (uncond, cond) = texts(1)
    guidance = Interval(Projected(Guidance(), 4.0, scheduler), 1.0, 2.0)
    got = Denoiser(Network(), scheduler, prompted, guidance)(X, LEVEL).x0
    x0 = scheduler.to_x0(cond, X, LEVEL)
    shift = got - x0
    assert difference(shift, 3 * orthogonal(x0 - scheduler.to_x0(uncond, X, LEVEL), x0)) < 1e-5
    assert (shift * x0).sum().abs() < 1e-4 * shift.norm() * x0.norm()


def test_a_perpendicular_negative_is_one_object() -> None:
    scheduler = DDPMScheduler(SchedulerConfig(prediction_type="sample"))
    prompted, (uncond, main, bad) = texts(1, -0.5)
    guidance = PerpendicularNegative(classifier_free(3.0))
    got = Denoiser(Network(), scheduler, prompted, guidance)(X, LEVEL).x0
    want = uncond + 3 * (main - uncond - 0.5 * orthogonal(bad - uncond, main - uncond))
    assert difference(got, want) < 1e-5
    plain = Denoiser(Network(), scheduler, prompted, classifier_free(3.0))(X, LEVEL).x0
    assert difference(plain, uncond + 3 * (main - uncond - 0.5 * (bad - uncond))) < 1e-5


def test_gradients_of_two_guidances_add() -> None:
    class Up(Modifier):
        def gradient(self, x: Tensor, level: Level) -> Tensor:
            other = self.inner.gradient(x, level)
            return torch.ones_like(x) + (0 if other is None else other)

    scheduler = DDPMScheduler(SchedulerConfig())
    prompted, _ = texts(1)
    plain = Denoiser(Network(), scheduler, prompted, Guidance())(X, LEVEL)
    twice = Denoiser(Network(), scheduler, prompted, Up(Up(Guidance())))(X, LEVEL)
    assert torch.equal(twice.x0, plain.x0)
    assert plain.gradient is None
    assert difference(twice.guided(LEVEL), plain.x0 + 2 * 0.8**2 / 0.6) < 1e-5


def test_an_embedded_scale_takes_the_place_of_guidance() -> None:
    scheduler = DDPMScheduler(SchedulerConfig())
    prompted, (_, cond) = texts(1)
    network = Network()
    denoise = Denoiser(network, scheduler, prompted, ClassifierFree(8.5), embedded_scale=8.5)
    assert torch.equal(denoise(X, LEVEL).x0, scheduler.to_x0(cond, X, LEVEL))
    assert network.rows == [1]
    assert [scale.tolist() for scale in network.scales] == [[8.5]]
