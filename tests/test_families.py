"""Every family: the pictures of diffusers' own pipelines on the same small random folder."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.pipeline import Pipeline
from tests.helpers.families import FAMILIES, SCHEDULE, for_task
from tests.helpers.pictures import AS_DIFFUSERS, assert_same, draw, draw_theirs, generator

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]

TASKS = {
    "text": ["sd", "sd2", "sd_turbo", "lcm", "sdxl", "sdxl_turbo", "ssd1b", "koala", "bk_tiny"],
    "image": ["sd", "sd2", "sd_turbo", "lcm", "sdxl", "refiner", "sdxl_turbo"],
    "inpaint": [
        "sd",
        "sd_inpaint",
        "sd2",
        "sd_turbo",
        "lcm",
        "sdxl",
        "refiner",
        "sdxl_inpaint",
        "sdxl_turbo",
    ],
}


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("family", TASKS["text"])
def test_text_to_image(models: Any, family: str, guidance: float) -> None:
    ours, theirs = models(family)
    arguments = {"num_inference_steps": 4, "guidance_scale": guidance, "height": 40, "width": 64}
    want = draw_theirs(for_task(theirs, "text"), generator=generator(3), **arguments)
    assert_same(draw(ours, seed=3, **arguments), want)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("family", TASKS["image"])
def test_image_to_image(models: Any, picture: Image.Image, family: str, strength: float) -> None:
    ours, theirs = models(family)
    arguments = {
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "image": picture,
        "strength": strength,
    }
    want = draw_theirs(for_task(theirs, "image"), generator=generator(5), **arguments)
    assert_same(draw(ours, seed=5, **arguments), want)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("family", TASKS["inpaint"])
def test_inpainting(
    models: Any, picture: Image.Image, mask: Image.Image, family: str, strength: float
) -> None:
    ours, theirs = models(family)
    arguments = {
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "image": picture,
        "mask_image": mask,
        "height": 40,
        "width": 64,
        "strength": strength,
    }
    want = draw_theirs(for_task(theirs, "inpaint"), generator=generator(5), **arguments)
    assert_same(draw(ours, seed=5, **arguments, **AS_DIFFUSERS), want)


@pytest.mark.parametrize("family", ["sdxl", "refiner"])
@pytest.mark.parametrize("negative", ["", "blurry"])
def test_negative_prompts_of_sdxl(models: Any, picture: Any, family: str, negative: str) -> None:
    """An empty one is not an absent one: base takes zeros for that."""
    ours, theirs = models(family)
    arguments: dict[str, Any] = {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "negative_prompt": [negative] * 2,
        "num_images_per_prompt": 2,
    }
    task = "image" if family == "refiner" else "text"
    if task == "image":
        arguments |= {"image": picture, "strength": 0.8}
    prompts = ["a red car", "two"]
    want = draw_theirs(for_task(theirs, task), prompts, generator=generator(5), **arguments)
    assert_same(draw(ours, prompts, generator=generator(5), **arguments), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_we_save_diffusers_loads(models: Any, tmp_path: Path, family: str) -> None:
    ours, theirs = models(family)
    ours.save_pretrained(tmp_path)
    estimator = {"depth_estimator": None, "feature_extractor": None} if family == "depth" else {}
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, **estimator)
    assert type(loaded) is type(theirs)
    for name, part in theirs.components.items():
        if isinstance(part, torch.nn.Module):
            values = getattr(loaded, name).state_dict()
            for key, value in part.state_dict().items():
                assert torch.equal(values[key], value)
    again = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert again.unet.config == ours.unet.config
    assert again.force_zeros_for_empty_prompt == ours.force_zeros_for_empty_prompt


@pytest.mark.parametrize(
    "family",
    ["sd", "sd2", "sd_inpaint", "lcm", "sdxl", "refiner", "pix2pix", "pix2pix_xl", "depth"],
)
def test_defaults_are_diffusers(models: Any, family: str) -> None:
    ours, theirs = models(family)
    parameters = inspect.signature(type(theirs).__call__).parameters
    for name in ("num_inference_steps", "guidance_scale", "image_guidance_scale"):
        if name in parameters:
            assert getattr(ours.defaults, name) == parameters[name].default


def test_lcm_visits_the_timesteps_of_diffusers(models: Any) -> None:
    from ldm.samplers import plan

    ours, _ = models("lcm")
    theirs = diffusers.LCMScheduler(**SCHEDULE)
    for n in range(1, 51):
        theirs.set_timesteps(n)
        assert [a.t for a, _ in plan(ours.scheduler, "lcm", n)] == theirs.timesteps.tolist()
