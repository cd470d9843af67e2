"""Two passes: a small picture, and a large one drawn over it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import ArgumentError
from ldm.hires import hires_fix
from ldm.techniques.outpainting import extend_canvas

ARGUMENTS = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 24, "width": 40}


def test_the_second_pass_is_image_to_image(models: Any) -> None:
    ours, _ = models("sd")
    texts = ["a red car", "a cat"]
    *_, last = hires_fix(
        ours, texts, hires_scale=1.5, hires_strength=0.5, seed=7, num_images_per_prompt=2,
        negative_prompt=["x", "y"], **ARGUMENTS,
    )  # fmt: skip
    small = ours(
        texts, seed=7, num_images_per_prompt=2, negative_prompt=["x", "y"], **ARGUMENTS
    ).images
    prompts, negatives = [text for text in texts for _ in "ab"], ["x", "x", "y", "y"]
    large = ours(
        prompts, image=small, strength=0.5, seed=7, negative_prompt=negatives,
        **(ARGUMENTS | {"height": 40, "width": 64}),
    ).images  # fmt: skip
    assert last.output.seeds == [7, 8, 9, 10]
    for got, want in zip(last.output.images, large, strict=True):
        assert got.size == (64, 40)
        assert (np.asarray(got) == np.asarray(want)).all()


@pytest.mark.parametrize(
    ("when", "first", "second"),
    [
        ("0.5", "[a:b:2]", "b"),  # over before the second pass
        ("1.5", "a", "[a:b:1]"),  # half of the two steps that it runs, not of its four
        ("5", "a", "[a:b:1]"),  # the first step after the first pass's four
        ("2.0", "a", "a"),
    ],
)
def test_prompts_go_on_changing(models: Any, when: str, first: str, second: str) -> None:
    ours, _ = models("sd")
    options = {"seed": 7, "output_type": "pt"}
    large = ARGUMENTS | {"height": 40, "width": 64}
    negatives = {"negative_prompt": f"[c:d:{when}]"}
    *_, last = hires_fix(
        ours, f"[a:b:{when}]", hires_scale=1.5, hires_strength=0.5, **options, **negatives,
        **ARGUMENTS,
    )  # fmt: skip
    swap = str.maketrans("ab", "cd")
    (small,) = ours(first, seed=7, negative_prompt=first.translate(swap), **ARGUMENTS).images
    again = {"image": small, "strength": 0.5, **options, **large}
    want = ours(second, negative_prompt=second.translate(swap), **again).images
    assert torch.equal(last.output.images, want)
    others = [ours(text, negative_prompt="d", **again).images for text in ("a", "b", "[a:b:1]")]
    assert len({picture.numpy().tobytes() for picture in others}) == 3


def test_progress_counts_both_passes(models: Any) -> None:
    ours, _ = models("sd")
    seen = list(hires_fix(ours, "a", hires_scale=2, hires_strength=0.5, **ARGUMENTS))
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert {progress.steps for progress in seen} == {6}
    assert [progress.output is None for progress in seen] == [True] * 5 + [False]
    generator = torch.Generator().manual_seed(3)
    *_, last = hires_fix(ours, "a", generator=generator, output_type="latent", **ARGUMENTS)
    assert last.output.images.shape == (1, 4, 6, 10)
    assert last.output.seeds == [None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hires_scale": 0.5}, r"hires_scale is 0\.5; it must be in \[1, 8\]"),
        ({"hires_scale": float("nan")}, "hires_scale is nan"),
        ({"hires_strength": 2}, "strength is 2"),
        ({"height": 8192, "width": 512}, "16384|pixels"),
        ({"image": "x.png"}, "image and two passes"),
        ({"seed": -1}, "seed is -1"),
        ({"steps_before": 3}, "steps_before and two passes"),
        ({"hires_scale": "2"}, "hires_scale is '2'; it must be a number"),
        ({"hires_strength": "1"}, "hires_strength is '1'; it must be a number"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5; it must be a whole number"),
    ],
)
def test_what_cannot_work_is_told_at_once(models: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        hires_fix(models("sd")[0], "a", **(ARGUMENTS | arguments))


def test_a_wider_canvas_keeps_the_picture(picture: Image.Image) -> None:
    wide, mask = extend_canvas(picture, 3, 8, 0, 2)
    assert wide.size == mask.size == (72, 56)
    pixels, new = np.asarray(wide), np.asarray(mask)
    assert (pixels[8:48, 3:67] == np.asarray(picture)).all()
    assert (new[8:48, 3:67] == 0).all()
    assert (new == 0).sum() == 40 * 64
    assert (pixels[0, 0] == pixels[8, 3]).all()  # the edge goes on
    with pytest.raises(ArgumentError, match="the margin top is -1"):
        extend_canvas(picture, 0, -1, 0, 0)
    with pytest.raises(ArgumentError, match="all margins are 0"):
        extend_canvas(picture, 0, 0, 0, 0)
