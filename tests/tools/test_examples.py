"""Each example runs, is short, and draws what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tools.examples import heat_maps, interpolate, own_sampler, text_to_image, train_ddpm

FILES = sorted(Path(text_to_image.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_an_example_has_at_most_forty_lines(path):
    assert len(path.read_text().splitlines()) <= 40
    assert f"tools.examples.{path.stem}`" in (path.parent / "README.md").read_text()


def share_of_red(picture: torch.Tensor) -> float:
    """Return which share of the pixels is clearly red, of (1, 3, H, W) in [-1, 1]."""
    red, green, blue = picture[0]
    return float(((red > 0.4) & (green < 0) & (blue < 0)).float().mean())


@pytest.mark.parametrize("example", [text_to_image, own_sampler])
def test_a_red_car_is_red(example):
    picture = example.draw("a red car", steps=10)
    assert picture.shape == (1, 3, 128, 128)
    assert share_of_red(picture) > 0.05


def test_the_walk_turns_from_red_to_green():
    first, last = interpolate.walk("a red apple", "a green apple", frames=2)
    (r1, g1), (r2, g2) = (np.asarray(p, float).mean((0, 1))[:2] for p in (first, last))
    assert r1 - g1 > 10 and g2 - r2 > 10


def test_every_word_has_a_map():
    sheet = heat_maps.draw("a red car")
    assert sheet.width > 4 * 128


def test_the_loop_learns():
    torch.set_num_threads(1)
    pipe = train_ddpm.train(steps=3, batch=8)
    assert pipe("", num_inference_steps=2, seed=1).images[0].size == (8, 8)
