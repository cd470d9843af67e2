"""Frozen bases of half precision, and runs without an average."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm.errors import ArgumentError
from ldm.training.checkpoint import checkpoints
from ldm.training.data import step_generator
from ldm.training.loop import Trainer, train_steps
from ldm.training.recipes.lora import LoraRecipe
from tests.helpers.toy_training import Toy, toy_config, toy_run
from tests.training.test_recipe_lora import config_for, photographs, shaken  # noqa: F401

# ruff: noqa: F811


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("kind", [{}, {"dora": True, "conv_rank": 2}])
def test_gradients_with_a_base_of_half_precision(
    bases: Any, photographs: Path, tmp_path: Path, family: str, kind: dict[str, Any]
) -> None:
    """As those of a float32 base with the same, rounded numbers: autocast rounds them anyway."""
    base, _ = bases(family)
    found = {}
    for name in ("float32", "bfloat16"):
        config = config_for(base, photographs, tmp_path / name, base_dtype=name, **kind)
        config = replace(config, mixed_precision="bf16")
        torch.manual_seed(0)  # of the new factors
        recipe = shaken(LoraRecipe(config))
        for network in recipe.networks:
            network.bfloat16().float()
        trainer = Trainer(config, recipe)
        trainer.start()
        kept = {parameter.dtype for parameter in recipe.pipe.unet.parameters()}
        assert kept == {getattr(torch, name)}
        assert all(p.dtype == torch.float32 for p in recipe.model.parameters())
        trainer.backward(0, recipe.batch(0, step_generator(0, 0)), 1)
        found[name] = torch.cat([p.grad.flatten() for p in recipe.model.parameters()])
        trainer.end()
    assert (found["bfloat16"] - found["float32"]).norm() < 0.02 * found["float32"].norm()


def test_a_run_with_a_base_of_half_precision_draws(
    bases: Any, photographs: Path, tmp_path: Path
) -> None:
    config = config_for(bases("sd")[0], photographs, tmp_path, base_dtype="bfloat16")
    config.options["num_inference_steps"] = 2
    config = replace(config, mixed_precision="bf16", steps=2, sample_every=1)
    for _ in train_steps(config, LoraRecipe(config)):
        pass
    assert len(list((tmp_path / "samples").iterdir())) == 2


def test_another_precision_is_refused(bases: Any, photographs: Path, tmp_path: Path) -> None:
    config = config_for(bases("sd")[0], photographs, tmp_path, base_dtype="float16")
    with pytest.raises(ArgumentError, match="base_dtype is 'float16', but mixed_precision 'no'"):
        LoraRecipe(config)


@pytest.mark.filterwarnings("ignore:the run goes on")
def test_without_an_average_the_weights_are_what_is_saved(tmp_path: Path) -> None:
    """No copy is kept, dropout is off while it is drawn, and the run resumes."""
    seen = []

    class Watched(Toy):
        def evaluate(self, model: torch.nn.Module) -> Any:
            seen.append((model is self.model, model.training, model[2].training))
            return super().evaluate(model)

    def run(output: Path, stop: int | None = None) -> None:
        config = toy_config(output, ema_decay=0.0, sample_every=2)
        torch.manual_seed(0)
        recipe = Watched(config)
        for state in train_steps(config, recipe):
            state.stop = state.step == stop
            assert recipe.model.training and recipe.model[2].training

    run(tmp_path / "whole")
    assert seen[:4] == [(True, False, False)] * 4
    run(tmp_path / "parts", stop=3)
    run(tmp_path / "parts")
    files = [load_file(tmp_path / name / "toy.safetensors") for name in ("whole", "parts")]
    last = checkpoints(tmp_path / "whole")[-1]
    weights = load_file(last / "model.safetensors")
    assert load_file(last / "ema.safetensors") == {}
    for name, value in weights.items():
        assert torch.equal(value, files[0][name]) and torch.equal(value, files[1][name])


def test_a_run_of_a_version_that_kept_a_copy_resumes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    toy_run(toy_config(tmp_path, steps=2, ema_decay=0.0))
    folder = checkpoints(tmp_path)[-1]
    save_file(load_file(folder / "model.safetensors"), folder / "ema.safetensors")
    with pytest.warns(UserWarning, match="steps was 2, now 3"):
        assert len(toy_run(toy_config(tmp_path, steps=3, ema_decay=0.0))) == 1
