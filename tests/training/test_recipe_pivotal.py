"""Pivotal tuning: words and a LoRA that learn together, and one file for both."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.errors import ArgumentError, CheckpointError
from ldm.pipeline import Pipeline
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.loop import Trainer, train_steps
from ldm.training.recipes.pivotal import PivotalRecipe
from tests.helpers.networks import difference
from tests.training.test_recipe_lora import loss_of, shaken, with_peft
from tests.training.test_recipe_words import config_for as words_config
from tests.training.test_recipe_words import drawn, load_into, with_new_rows

diffusers = pytest.importorskip("diffusers")
WORDS = {"<dog>": {"initializer": "dog", "vectors": 2}, "zwilbo": {"initializer": "car"}}
PROMPT = "a <dog>, a zwilbo"


def config_for(base: Path, source: Path, output: Path, **options: Any) -> TrainConfig:
    own = {"rank": 4, "save_dtype": "float32", "words": WORDS}
    return replace(words_config(base, source, output, **own | options), recipe="pivotal")


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_loss_and_gradients_are_those_of_diffusers_with_peft(
    bases: Any, dogs: Path, tmp_path: Path, family: str
) -> None:
    """Of vectors and factors, in float32, within 1e-5."""
    base, theirs = bases(family)
    config = config_for(base, dogs, tmp_path)
    recipe = shaken(PivotalRecipe(config))
    trainer = Trainer(config, recipe)
    trainer.start()
    batch = recipe.batch(0, step_generator(config.seed, 0))
    loss, _ = recipe.loss(recipe.model, batch)
    loss.backward()
    theirs = copy.deepcopy(theirs)
    theirs.unet.requires_grad_(False)
    matrices = with_new_rows(theirs, recipe.words.values())
    layers = with_peft(theirs, recipe)
    expected = loss_of(theirs, batch)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for part, matrix in matrices.items():
        found = recipe.words.vectors[part].grad
        assert found is not None
        assert (found - matrix.weight.grad[-len(found) :]).abs().max() < 1e-5
    for path, adapter in recipe.model.adapters["unet"].items():
        wanted = layers["unet"][path].lora_B["default"].weight.grad
        assert (adapter.factors["up"].grad.reshape(wanted.shape) - wanted).abs().max() < 1e-5
    trainer.end()


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_one_file_brings_words_and_lora(
    bases: Any, dogs: Path, tmp_path: Path, family: str
) -> None:
    """By its keys, by a tag in the prompt, and to start from."""
    base, _ = bases(family)
    output = tmp_path / "pets"
    config = config_for(base, dogs, output, train_text_encoder=True)
    recipe = shaken(PivotalRecipe(config))
    recipe.save(recipe.model, output)
    wanted = drawn(recipe.pipe)
    pipe = Pipeline.from_pretrained(base, device="cpu")
    plain = drawn(pipe)
    lora = pipe.load_lora_weights(output)
    assert lora.applied == lora.total
    assert list(lora.words) == ["<dog>", "zwilbo"]
    assert np.abs(drawn(pipe) - wanted).max() < 1e-4
    assert np.abs(plain - wanted).max() > 1e-3
    again = PivotalRecipe(replace(config, start=str(output / "pets.safetensors")))
    assert np.abs(drawn(again.pipe) - wanted).max() < 1e-4
    keys = set(load_file(output / "pets.safetensors"))
    assert {"bundle_emb.<dog>.clip_l", "bundle_emb.zwilbo.clip_l"} < keys
    assert ("bundle_emb.<dog>.clip_g" in keys) == (family == "sdxl")


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_draws_the_same(bases: Any, dogs: Path, tmp_path: Path, family: str) -> None:
    """Latents after three steps within 1e-4; it reads no words in a LoRA's file."""
    base, theirs = bases(family)
    words = {"<dog>": WORDS["<dog>"]}
    recipe = shaken(
        PivotalRecipe(config_for(base, dogs, tmp_path, words=words, save_as="diffusers"))
    )
    recipe.save(recipe.model, tmp_path)
    theirs = copy.deepcopy(theirs)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(
        theirs.scheduler.config, clip_sample=False, steps_offset=1
    )
    kohya = PivotalRecipe(config_for(base, dogs, tmp_path / "kohya", words=words))
    kohya.save(kohya.model, tmp_path / "kohya")
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        copy.deepcopy(theirs).load_lora_weights(tmp_path / "kohya" / "kohya.safetensors")
    theirs.load_lora_weights(tmp_path / "pytorch_lora_weights.safetensors")
    load_into(theirs, tmp_path, "a1111")
    pipe = recipe.pipe
    shape = (1, pipe.unet.config.in_channels, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    settings = {"num_inference_steps": 3, "latents": noise, "height": 64, "width": 64}
    found = pipe("a <dog>", sampler="ddim", output_type="latent", **settings).images
    expected = theirs("a <dog>", output_type="latent", **settings).images
    assert difference(torch.as_tensor(found), expected) < 1e-4


def moved(config: TrainConfig) -> list[dict[str, Tensor]]:
    """The weights before training and after each step."""
    recipe = PivotalRecipe(config)
    states = [copy.deepcopy(recipe.model.state_dict())]
    for _ in train_steps(config, recipe):
        states.append(copy.deepcopy(recipe.model.state_dict()))
    return states


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_words_stop_after_their_share_of_the_steps(
    bases: Any, dogs: Path, tmp_path: Path, optimizer: str
) -> None:
    """Exactly: neither momentum nor decay moves them on. Their learning rate is their own."""
    base, _ = bases("sd")
    config = config_for(base, dogs, tmp_path, words_frac=0.5)
    config = replace(config, learning_rate=1e-3, learning_rates={"words": 5e-2}, weight_decay=0.1)
    states = moved(replace(config, steps=4, optimizer=optimizer))
    words = [state["parts.words.vectors.text_encoder"] for state in states]
    assert difference(words[0], words[1]) == pytest.approx(0.05, rel=0.1)
    assert not torch.equal(words[1], words[2])
    assert torch.equal(words[2], words[3])
    assert torch.equal(words[3], words[4])
    name = next(key for key in states[0] if key.endswith("factors.up"))
    assert not torch.equal(states[3][name], states[4][name])


@pytest.mark.filterwarnings("ignore:the run goes on with other settings")
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    bases: Any, dogs: Path, tmp_path: Path
) -> None:
    """Bit for bit, also where the words stop in between."""
    base, _ = bases("sd")
    for name, stops in (("whole", []), ("stopped", [1, 3])):
        config = replace(
            config_for(base, dogs, tmp_path / name, num_inference_steps=1, words_frac=0.4),
            steps=5, ema_decay=0.9, batch_size=3,
        )  # fmt: skip
        for stop in [*stops, 5]:
            torch.manual_seed(0)
            for state in train_steps(config, PivotalRecipe(config)):
                state.stop = state.step == stop
    found = [load_file(tmp_path / name / f"{name}.safetensors") for name in ("whole", "stopped")]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_what_cannot_work_is_refused(bases: Any, dogs: Path, tmp_path: Path) -> None:
    base, _ = bases("sd")
    cases = {
        "holds 'dog', which is a token": {"words": ["dog"]},
        "words_frac is 0.*; it must be in": {"words_frac": 0},
        r"rank is 4096, but \S+ has": {"rank": 4096},
    }
    for message, options in cases.items():
        with pytest.raises(ArgumentError, match=message):
            PivotalRecipe(config_for(base, dogs, tmp_path, **options))
    with pytest.raises(CheckpointError, match="nowhere"):
        PivotalRecipe(replace(config_for(base, dogs, tmp_path), start="nowhere.safetensors"))
    recipe = PivotalRecipe(config_for(base, dogs, tmp_path / "old", words=["x1"]))
    recipe.save(recipe.model, tmp_path / "old")
    start = str(tmp_path / "old" / "old.safetensors")
    with pytest.raises(ArgumentError, match="has the words x1, but not <dog>"):
        PivotalRecipe(replace(config_for(base, dogs, tmp_path), start=start))
