"""The built-in model's own ControlNet and IP-Adapter: what they are made for."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ldm import Pipeline
from ldm.checkpoints.assets import asset_path
from ldm.control.preprocessors import canny, scribble
from tools.builtin_model.evaluate_control import edge_agreement
from tools.builtin_model.evaluate_ip_adapter import colour_distance
from tools.readme_pictures import drawing, sketch


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(device="cpu")


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (scribble(drawing(128)), "a blue fish"),
        (scribble(drawing(128)), "a red fish, flat"),
        (canny(sketch(128)), "a green house"),
        (scribble(sketch(128)), "a house on a blue background"),
    ],
)
def test_pictures_follow_drawings(pipe: Pipeline, hint: Image.Image, text: str) -> None:
    """The edges of both agree; without the drawing, they do not."""
    followed = [pipe(text, control_image=hint, seed=seed).images[0] for seed in range(2)]
    plain = [pipe(text, seed=seed).images[0] for seed in range(2)]
    assert np.mean([edge_agreement(hint, picture) for picture in followed]) > 0.65
    assert np.mean([edge_agreement(hint, picture) for picture in plain]) < 0.55


def test_the_controlnet_is_not_used_without_a_picture(pipe: Pipeline) -> None:
    """A picture that was drawn with it before makes no difference."""
    fresh = Pipeline.from_pretrained(device="cpu")
    pipe("a fish", control_image=scribble(drawing(128)), num_inference_steps=2)
    pictures = [each("a red car", seed=1).images[0] for each in (pipe, fresh)]
    assert np.array_equal(*map(np.asarray, pictures))


@pytest.mark.parametrize("colour", ["green", "blue", "purple"])
def test_pictures_take_over_colours(pipe: Pipeline, colour: str) -> None:
    """Beside a picture of an apple in a colour, cars come nearer to it by a third."""
    apple = pipe(f"a {colour} apple", seed=1).images[0]
    read = [pipe("a car", ip_adapter_image=apple, seed=seed).images[0] for seed in (2, 4)]
    plain = [pipe("a car", seed=seed).images[0] for seed in (2, 4)]
    near, far = (colour_distance([apple, apple], pictures) for pictures in (read, plain))
    assert near < 0.67 * far


def test_they_are_small() -> None:
    """At most 16 and 12 MB, as every clone has them."""

    def size(*names: str) -> int:
        folders = [asset_path("weights") / name for name in names]
        return sum(file.stat().st_size for folder in folders for file in folder.iterdir())

    assert size("controlnet") < 16e6
    assert size("ip_adapter", "image_encoder") < 12e6
