"""Values of every kind at every option of fine-tuning: they work, or are refused by our errors."""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.errors import LDMError
from ldm.pipeline import Pipeline
from ldm.training.recipes import build_recipe, frozen_base
from ldm.training.recipes.captioned import CaptionedRecipe
from tests.fuzz.gate import limits
from tests.fuzz.readers.data import pictures
from tests.training.test_odd_settings import ODD, config

# Recipe → the dataclass of its options, and options that it cannot do without.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraOptions", {"rank": 2}),
    "lcm": ("LCMOptions", {"rank": 2, "num_ddim_timesteps": 20}),
    "guidance_distillation": ("DistillationOptions", {"rank": 2}),
    "textual_inversion": ("TextualInversionOptions", {"words": ["<dog>"]}),
    "pivotal": ("PivotalOptions", {"rank": 2, "words": ["<dog>"]}),
}
# "targets" ".*" fits; what is opened is tested where it is read.
KNOWN = {"base", "data", "class_data"}


def cases() -> Iterator[tuple[str, str]]:
    """Each option once, at the recipe that has it first, and ``start`` of each."""
    seen = set(KNOWN)
    for name, (options, _) in RECIPES.items():
        module = importlib.import_module(f"ldm.training.recipes.{name}")
        for field in dataclasses.fields(getattr(module, options)):
            if field.name not in seen:
                seen.add(field.name)
                yield name, field.name
        yield name, "start"


@pytest.fixture(scope="module")
def base(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(("name", "key"), list(cases()))
def test_options_of_fine_tuning(
    base: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    """Each recipe is built, and its first batch is described."""
    monkeypatch.setattr(frozen_base, "load_base", lambda *_: (base, base.vae))
    pictures(tmp_path)
    refused = 0
    for value in ODD:
        options = {"data": {"size": 64}, "instance_prompt": "a <dog>", **RECIPES[name][1]}
        changed = {"start": value} if key == "start" else {"options": options | {key: value}}
        base.inversions.loaded.clear()
        base.inversions.apply()
        try:
            with warnings.catch_warnings(), limits(20, 2 << 30):
                warnings.simplefilter("ignore")
                recipe = build_recipe(
                    config(tmp_path, recipe=name, **{"options": options} | changed)
                )
                assert isinstance(recipe, CaptionedRecipe)
                recipe.first_batch()
        except LDMError as error:
            refused += 1
            assert len(str(error)) < 6000
    assert refused > 5
