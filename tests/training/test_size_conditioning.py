"""SDXL's sizes and text states in training: of each picture as it was cropped, and kept states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageOps

from ldm.errors import ArgumentError
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.data.crops import images_to_tensor
from ldm.training.recipes.lora import LoraRecipe
from tests.helpers.toy_latents import build

SIZES = [(70, 64), (64, 101), (200, 90), (131, 131)]  # height, width


@pytest.fixture(scope="module")
def base(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    models("sdxl")[1].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, (height, width) in enumerate(SIZES):
        picture = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return folder


def recipe_for(base: Path, source: Path, output: Path, **options: Any) -> LoraRecipe:
    config = TrainConfig("lora", str(source), str(output), 1, 8, 1e-3)
    own = {"base": str(base), "data": {"size": 64, "flip": True}, "caption_dropout": 0.25}
    recipe = LoraRecipe(replace(config, options=own | options, mixed_precision="no"))
    recipe.prepare(Accelerator(cpu=True))
    return recipe


@pytest.mark.parity
@pytest.mark.parametrize("buckets", [None, {"multiple": 16}])
def test_sizes_are_those_of_diffusers(
    base: Path, photos: Path, tmp_path: Path, buckets: dict[str, int] | None
) -> None:
    """As train_text_to_image_sdxl.py computes them: resized, mirrored, then cropped at (y, x)."""
    recipe = recipe_for(base, photos, tmp_path, buckets=buckets)
    seen = set()
    for step in range(12):
        drawn = recipe.latents.draw(8, step_generator(0, step))
        found = recipe.batch(step, step_generator(0, step))["time_ids"]
        target = tuple(side * recipe.vae.config.scale for side in drawn.latents.shape[2:])
        rows = zip(drawn.rows.tolist(), drawn.mirrored.tolist(), found.tolist(), strict=True)
        for row, mirrored, (height, width, top, left, *size) in rows:
            seen.add((row, mirrored))
            assert (height, width) == SIZES[row] and tuple(size) == target
            scale = max(target[0] / height, target[1] / width)
            picture = Image.open(photos / f"{row}.png")
            resized = picture.resize(
                (round(width * scale), round(height * scale)), Image.Resampling.LANCZOS
            )
            if mirrored:
                resized = ImageOps.mirror(resized)
            box = (int(left), int(top), int(left) + target[1], int(top) + target[0])
            cut = images_to_tensor(np.asarray(resized.crop(box))[None])
            pixels = recipe.data.pixels(torch.tensor([row]), target)
            assert torch.equal(cut, pixels.flip(-1) if mirrored else pixels)
    assert len(seen) == 8  # an odd room on the left is another one in the mirror


def test_the_network_reads_them(base: Path, photos: Path, tmp_path: Path) -> None:
    recipe = recipe_for(base, photos, tmp_path)
    batch = recipe.batch(0, step_generator(0, 0))
    assert torch.equal(recipe.conditions(batch)["time_ids"], batch["time_ids"])
    loss = recipe.loss(recipe.model, batch)[0]
    batch["time_ids"] = batch["time_ids"] + 100
    assert not torch.equal(recipe.loss(recipe.model, batch)[0], loss)


def test_states_of_both_encoders_are_kept(base: Path, photos: Path, tmp_path: Path) -> None:
    """They are those of the captions, read from the disk, within float16's rounding."""
    plain = recipe_for(base, photos, tmp_path / "plain", caption_suffix="sks")
    kept = recipe_for(base, photos, tmp_path / "kept", caption_suffix="sks", keep_contexts=True)
    batch, own = (each.batch(5, step_generator(0, 5)) for each in (plain, kept))
    assert "ids" not in own and batch["dropped"].any() and not batch["dropped"].all()
    expected = plain.conditions(batch)
    for name, states in kept.conditions(own).items():
        apart = float((states - expected[name]).abs().max())
        assert apart < 2e-3 * max(1.0, float(expected[name].abs().max())), name
    assert all(isinstance(states, np.memmap) for states in kept.contexts.states.values())
    assert kept.example(2).keys() == own.keys() - {"time_ids"}
    torch.testing.assert_close(
        *(each.loss(each.model, b)[0] for each, b in ((plain, batch), (kept, own))),
        atol=1e-3, rtol=1e-3,
    )  # fmt: skip


def test_random_crops_have_no_kept_latents(parts: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="the latents of each picture are encoded once"):
        build(parts, photos, tmp_path, data={"size": 32, "crop": "random"})
