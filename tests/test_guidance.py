"""Guidance: rescaled, within an interval, and off without cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import assert_same, difference, draw, draw_theirs, generator
from families import for_task

from ldm.errors import ArgumentError
from ldm.guidance import classifier_free
from ldm.pipeline import Pipeline
from ldm.scheduler import CLEAN

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]

ARGUMENTS = {"num_inference_steps": 4, "height": 40, "width": 64}


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
