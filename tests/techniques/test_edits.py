"""Edits by instruction (instruct-pix2pix): diffusers' pictures, guidance by two scales, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.errors import ArgumentError, CheckpointError
from ldm.guidance import ImageAndText, classifier_free
from ldm.pipeline import Pipeline
from ldm.request import Request
from ldm.scheduler import Level
from tests.helpers.pictures import assert_same, draw, draw_theirs, generator, generators, quiet

LEVEL = Level(t=500.0, alpha=0.6, sigma=0.8)


def theirs_of(pipe: Any, prompt: Any, **arguments: Any) -> Any:
    """Latents and pictures; the XL pipeline has no callback, and wants the size."""
    if "XL" not in type(pipe).__name__:
        return draw_theirs(pipe, prompt, **arguments)
    size = {"height": arguments["image"].height, "width": arguments["image"].width}
    seed = arguments.pop("generator").initial_seed()
    kinds = [
        pipe(prompt, generator=generator(seed), output_type=kind, **arguments, **size).images
        for kind in ("latent", "pil")
    ]
    return kinds[0], kinds[1]


@pytest.fixture
def small(picture: Image.Image) -> Image.Image:
    return picture.resize((64, 40))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*:FutureWarning:diffusers")
@pytest.mark.parametrize("family", ["pix2pix", "pix2pix_xl"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_guidance_scale": 1.0},
        {"image_guidance_scale": 3.5, "guidance_scale": 2.0},
        {"image_guidance_scale": 0.9},  # switches all guidance off
        {"guidance_scale": 1.0},
        {"negative_prompt": "blurry"},
    ],
    ids=str,
)
def test_same_as_diffusers(models: Any, small: Image.Image, family: str, changes: dict) -> None:
    ours, theirs = models(family)
    arguments = {"num_inference_steps": 4, "guidance_scale": 4.0, "image": small} | changes
    want = theirs_of(quiet(theirs), "make it red", generator=generator(3), **arguments)
    assert_same(draw(ours, "make it red", seed=3, **arguments), want)


@pytest.mark.parity
def test_a_batch_with_images_of_their_own(models: Any, small: Image.Image) -> None:
    ours, theirs = models("pix2pix")
    images = [small, small.rotate(180)]
    arguments: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "image": images}
    prompts = ["a red car", "make it a much longer text, and blue"]
    want = draw_theirs(quiet(theirs), prompts, generator=generators(7, 2), **arguments)
    got = draw(ours, prompts, seed=7, **arguments)
    assert_same(got, want)
    alone = draw(ours, prompts[1], seed=8, **arguments | {"image": images[1]})
    assert torch.allclose(alone[0], got[0][1:], atol=1e-4)


def test_guidance_is_equation_3() -> None:
    """Brooks et al. 2023: ẽ(c_I, c_T) of e(∅, ∅) = 1, e(c_I, ∅) = 3 and e(c_I, c_T) = 4."""
    cond, uncond, bare = (torch.full((1, 1, 1, 1), value) for value in (4.0, 3.0, 1.0))
    guidance = ImageAndText(7.5, 1.5).with_bare(bare)
    assert guidance.combine(cond, uncond, cond, LEVEL).item() == 1 + 1.5 * 2 + 7.5 * 1
    assert ImageAndText(1.0, 1.0, bare).combine(cond, uncond, cond, LEVEL).item() == 4
    assert [ImageAndText(s, i).active(LEVEL) for s, i in ((2, 1), (1, 2), (2, 0.9))] == [
        True, False, False,
    ]  # fmt: skip
    composed = classifier_free(7.5, 0.5, (0.0, 5.0), image_scale=1.5)
    assert composed.needs_bare
    plain = classifier_free(7.5, 0.0, (0.0, 5.0), image_scale=1.5).with_bare(bare)
    assert plain.combine(cond, uncond, cond, LEVEL).item() == 11.5
    assert not classifier_free(7.5, 0.5).needs_bare
    for scales in ((float("nan"), 1.5), (7.5, float("inf"))):
        with pytest.raises(ArgumentError, match=r"_scale is (nan|inf); it must be a number"):
            ImageAndText(*scales)


def test_it_keeps_closer_to_the_image_and_to_the_text(models: Any, small: Image.Image) -> None:
    """Both scales change the picture, and so does the image itself."""
    ours, _ = models("pix2pix")
    arguments: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, "image": small}
    first, *others = (
        draw(ours, **arguments | changes)[0]
        for changes in (
            {},
            {"image_guidance_scale": 2.5},
            {"guidance_scale": 2.0},
            {"image": small.rotate(180)},
            {"strength": 0.5},
            {"guidance_rescale": 0.7},
            {"prompt": "a red car AND a blue sky"},
        )
    )
    for other in others:
        assert not torch.allclose(first, other, atol=1e-2)
    default = draw(ours, **arguments | {"image_guidance_scale": 1.5, "strength": 1.0})[0]
    assert torch.equal(first, default)


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("pix2pix", {}, "this model edits an image as the text says; give image"),
        ("pix2pix", {"image": True, "mask_image": True}, "edits the whole image; leave mask_im"),
        ("pix2pix", {"image": True, "depth_map": True}, "depth_map is given, but this model"),
        ("sd", {"image": True, "image_guidance_scale": 1.5}, "1.5, but this model does not edit"),
        ("sd", {"image": True, "depth_map": True}, "this model reads no depth; leave it out"),
    ],
)
def test_what_does_not_go_with_the_model(
    models: Any, small: Image.Image, family: str, arguments: dict, message: str
) -> None:
    ours, _ = models(family)
    given = {name: small if value is True else value for name, value in arguments.items()}
    with pytest.raises(ArgumentError, match=message):
        ours.stream("a red car", **given)


@pytest.mark.parametrize("scale", [float("nan"), "1.5", float("inf"), True])
def test_a_scale_that_is_no_number(scale: Any) -> None:
    with pytest.raises(ArgumentError, match="image_guidance_scale is"):
        Request("x", image="a.png", image_guidance_scale=scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_cosxl_edit": True}, "is of CosXL Edit, which is not supported"),
        ({"_class_name": "StableUnCLIPImg2ImgPipeline"}, "is of a StableUnCLIPImg2ImgPipeline"),
        ({"_class_name": "StableDiffusionUpscalePipeline"}, "is of a StableDiffusionUpscalePip"),
    ],
)
def test_folders_of_other_tasks(tmp_path: Path, change: dict, message: str) -> None:
    index = {"_class_name": "StableDiffusionXLInstructPix2PixPipeline"} | change
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        Pipeline.from_pretrained(tmp_path)
