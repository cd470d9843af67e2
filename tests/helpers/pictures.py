"""Pictures drawn by our pipelines and by diffusers', and their comparison."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.pipeline import Pipeline
from tests.helpers.networks import difference

PROMPT = "a red car"
AS_DIFFUSERS = {"mask_blur": 0.0, "paste_back": False}
Drawn = tuple[Tensor, list[Image.Image]]  # final latents, pictures


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Pipeline, prompt: Any = PROMPT, **arguments: Any) -> Drawn:
    *_, last = pipe.stream(prompt, **arguments)
    return last.latents, last.output.images


def draw_theirs(pipe: Any, prompt: Any = PROMPT, **arguments: Any) -> Drawn:
    latents = []

    def keep(pipe: Any, step: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(values["latents"].clone())
        return {}

    images = pipe(prompt, callback_on_step_end=keep, **arguments).images
    return latents[-1], images


def pixels(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).float()


def assert_same(got: Drawn, want: Drawn) -> None:
    """Latents within 1e-4, pixels within 1/255, of pictures that have something on them.

    Random weights give latents of up to a hundred: there, within 5e-6 of the largest.
    """
    assert difference(got[0], want[0]) <= max(1e-4, 5e-6 * float(want[0].abs().max()))
    assert pixels(want[1]).std() > 20
    assert difference(pixels(got[1]), pixels(want[1])) <= 1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(seed: int, count: int) -> list[torch.Generator]:
    return [generator(seed + i) for i in range(count)]
