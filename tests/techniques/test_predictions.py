"""Observers of guidance's two predictions: what they see, and that nothing changes by it."""

import numpy as np
import pytest
import torch

from ldm import Pipeline
from ldm.denoiser import Predictions
from ldm.techniques.predictions import observe_predictions

DRAW = {"seed": 1, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe(folder) -> Pipeline:
    return Pipeline.from_pretrained(folder)


def seen_of(pipe, prompt="a red car", **arguments) -> tuple[list[Predictions], np.ndarray]:
    seen: list[Predictions] = []
    with observe_predictions(pipe.unet, seen.append):
        picture = pipe(prompt, **{**DRAW, **arguments}).images[0]
    return seen, np.asarray(picture)


def test_guided_is_made_of_the_two_predictions_and_the_picture_is_the_same(pipe) -> None:
    seen, picture = seen_of(pipe, guidance_scale=3.0)
    assert len(seen) == 2
    for each in seen:
        formula = each.uncond + 3.0 * (each.cond - each.uncond)
        assert torch.equal(each.guided, formula)
        assert not torch.equal(each.cond, each.uncond)
    assert (picture == np.asarray(pipe("a red car", guidance_scale=3.0, **DRAW).images[0])).all()


@pytest.mark.parametrize(
    "arguments", [{"guidance_scale": 1.0}, {"guidance_interval": (900.0, 901.0)}]
)
def test_without_guidance_there_is_one_prediction(pipe, arguments) -> None:
    for each in seen_of(pipe, **arguments)[0]:
        assert each.uncond is None and torch.equal(each.guided, each.cond)


def test_texts_that_and_joins_are_one_conditional_prediction(pipe) -> None:
    seen, _ = seen_of(pipe, "a red car AND a blue house :0.5", guidance_scale=2.0)
    assert seen[0].cond.shape == seen[0].uncond.shape == seen[0].x.shape


def test_observers_end_with_their_block_and_see_their_model_alone(pipe) -> None:
    seen, _ = seen_of(pipe)
    with observe_predictions(torch.nn.Identity(), seen.append):
        pipe("a red car", **DRAW)
    pipe("a red car", **DRAW)
    assert len(seen) == 2


@pytest.mark.parity
def test_predictions_are_diffusers(folder, pipe) -> None:
    """Both predictions at the recorded x_t, by diffusers' network under each text; 2e-6 apart."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    states = theirs.encode_prompt("a red car", "cpu", 1, True, "a blue house")
    seen, _ = seen_of(pipe, negative_prompt="a blue house", guidance_scale=3.0)
    for each in seen:
        for prediction, text in zip((each.cond, each.uncond), states, strict=True):
            with torch.no_grad():
                want = theirs.unet(each.x, each.level.t, text).sample
            assert (prediction - want).abs().max() <= 2e-6
