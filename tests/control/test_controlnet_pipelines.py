"""ControlNets: the pictures of diffusers' own pipelines on the same small random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.pipeline import Pipeline
from tests.helpers.controlnets import control_pipeline, controlnet_for
from tests.helpers.pictures import AS_DIFFUSERS, assert_same, draw, draw_theirs, generator

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]
SETTINGS = {"num_inference_steps": 5, "guidance_scale": 3.0, "height": 40, "width": 72}
TASKS = {
    "text": ["sd", "sd2", "lcm", "sdxl", "ssd1b"],
    "image": ["sd", "sdxl"],
    "inpaint": ["sd", "sd_inpaint", "sdxl", "sdxl_inpaint"],
}


def hint(seed: int, size: tuple[int, int] = (72, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.fixture(scope="module")
def controlled(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(ours with ControlNets, diffusers' base, diffusers' ControlNets) of a family."""
    made: dict[tuple[str, int], Any] = {}

    def get(family: str, count: int = 1) -> Any:
        if (family, count) not in made:
            _, theirs = models(family)
            networks = [controlnet_for(theirs, seed) for seed in range(count)]
            base, folders = tmp_path_factory.mktemp(family), []
            theirs.save_pretrained(base)
            for i, network in enumerate(networks):
                folders.append(base / f"control{i}")
                network.save_pretrained(folders[-1])
            made[family, count] = (
                Pipeline.from_pretrained(base, controlnet=folders, device="cpu"),
                theirs,
                networks if count > 1 else networks[0],
            )
        return made[family, count]

    return get


def arguments_of(task: str, picture: Image.Image, mask: Image.Image) -> dict[str, Any]:
    more = {"text": {}, "image": {"image": picture}, "inpaint": {"image": picture}}[task]
    if task == "inpaint":
        more["mask_image"] = mask
    return more | ({} if task == "text" else {"strength": 0.7})


def theirs_of(task: str, ours: dict[str, Any]) -> dict[str, Any]:
    """diffusers calls the control picture of text-to-image "image"."""
    if task == "text":
        return {("image" if k == "control_image" else k): v for k, v in ours.items()}
    return ours


@pytest.mark.parametrize(("task", "family"), [(t, f) for t, fs in TASKS.items() for f in fs])
@pytest.mark.parametrize("guess_mode", [False, True])
def test_every_task(
    controlled: Any, picture: Any, mask: Any, task: str, family: str, guess_mode: bool
) -> None:
    ours, base, network = controlled(family)
    arguments = SETTINGS | arguments_of(task, picture, mask) | {
        "control_image": hint(1), "controlnet_conditioning_scale": 0.8, "guess_mode": guess_mode,
    }  # fmt: skip
    pipe = control_pipeline(base, network, task)
    want = draw_theirs(pipe, generator=generator(3), **theirs_of(task, arguments))
    same = AS_DIFFUSERS if task == "inpaint" else {}
    assert_same(draw(ours, seed=3, **arguments, **same), want)


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_two_networks_with_scales_and_ranges(
    controlled: Any, family: str, guess_mode: bool
) -> None:
    ours, base, networks = controlled(family, 2)
    arguments = SETTINGS | {
        "num_inference_steps": 7,
        "control_image": [hint(1), hint(2, (50, 61))],
        "controlnet_conditioning_scale": [0.5, 1.3],
        "control_guidance_start": [0.0, 0.25],
        "control_guidance_end": [0.6, 1.0],
        "guess_mode": guess_mode,
        "num_images_per_prompt": 2,
        "negative_prompt": ["blurry", ""],
    }
    pipe = control_pipeline(base, networks, "text")
    prompts = ["a red car", "a house"]
    want = draw_theirs(pipe, prompts, generator=generator(3), **theirs_of("text", arguments))
    assert_same(draw(ours, prompts, generator=generator(3), **arguments), want)


def test_a_picture_for_each_prompt(controlled: Any) -> None:
    ours, base, networks = controlled("sd", 2)
    nested = [[hint(1), hint(2)], [hint(3), hint(4)]]
    arguments = SETTINGS | {"control_image": nested}
    prompts = ["a red car", "a house"]
    pipe = control_pipeline(base, networks, "text")
    want = draw_theirs(pipe, prompts, generator=generator(3), **theirs_of("text", arguments))
    assert_same(draw(ours, prompts, generator=generator(3), **arguments), want)


def test_the_size_is_the_pictures(controlled: Any) -> None:
    ours, base, network = controlled("sd")
    arguments = {
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "control_image": hint(1, (61, 45)),
    }
    pipe = control_pipeline(base, network, "text")
    want = draw_theirs(pipe, generator=generator(3), **theirs_of("text", arguments))
    got = draw(ours, seed=3, **arguments)
    assert got[1][0].size == (56, 40)
    assert_same(got, want)


def test_tensors_are_taken_as_they_are(controlled: Any) -> None:
    ours, base, network = controlled("sd")
    rows = torch.rand((2, 3, 40, 72), generator=generator(5)) * 2 - 1
    rows = torch.where(rows < 0, -1.0, rows)  # as for an inpainting ControlNet
    arguments = SETTINGS | {"control_image": rows}
    prompts = ["a red car", "a house"]
    pipe = control_pipeline(base, network, "text")
    pipe.control_image_processor.config.do_normalize = False
    want = draw_theirs(pipe, prompts, generator=generator(3), **theirs_of("text", arguments))
    assert_same(draw(ours, prompts, generator=generator(3), **arguments), want)


SAMPLERS = {
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
    "heun": "HeunDiscreteScheduler",
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_with_a_range(controlled: Any, sampler: str) -> None:
    ours, base, network = controlled("sd")
    arguments = SETTINGS | {"num_inference_steps": 6, "control_image": hint(1)}
    if sampler not in ("pndm", "heun"):  # whose evaluations diffusers counts as steps
        arguments |= {"control_guidance_start": 0.2, "control_guidance_end": 0.7}
    pipe = control_pipeline(base, network, "text")
    options: dict[str, Any] = {"timestep_spacing": "leading"}
    options |= {"skip_prk_steps": True} if sampler == "pndm" else {}
    cls = getattr(diffusers, SAMPLERS[sampler])
    pipe.scheduler = cls.from_config(base.scheduler.config, **options)
    want = draw_theirs(pipe, generator=generator(3), **theirs_of("text", arguments))
    assert_same(draw(ours, seed=3, sampler=sampler, **arguments), want)


def test_means_over_pixels(models: Any, tmp_path: Path) -> None:
    _, theirs = models("sd")
    network = controlnet_for(theirs, 7, global_pool_conditions=True)
    network.save_pretrained(tmp_path / "net")
    theirs.save_pretrained(tmp_path)
    ours = Pipeline.from_pretrained(tmp_path, controlnet=tmp_path / "net", device="cpu")
    pipe = control_pipeline(theirs, network, "text")
    arguments = SETTINGS | {"control_image": hint(1)}
    want = draw_theirs(pipe, generator=generator(3), **theirs_of("text", arguments))
    assert_same(draw(ours, seed=3, **arguments), want)
