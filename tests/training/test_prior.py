"""DreamBooth: instance and class pictures in a batch, their loss, and class pictures drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from ldm.errors import ArgumentError, DataError
from ldm.pipeline import Pipeline
from ldm.training.config import TrainConfig
from ldm.training.data import open_data, step_generator
from ldm.training.loop import train_steps
from ldm.training.recipes.class_pictures import draw_class_pictures
from ldm.training.recipes.lora import LoraRecipe
from tests.helpers.toy_latents import build

SIZES = [(32, 32), (48, 32), (32, 32), (48, 32), (40, 64)]  # height, width


def write(folder: Path, count: int, caption: str | None = None, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(seed + i)
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize(SIZES[i % 5][::-1]).save(folder / f"{i}.png")
        if caption:
            (folder / f"{i}.txt").write_text(caption)
    return folder


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Of five pictures of a thing and three of its class."""
    write(tmp_path / "thing", 5)
    return {
        "instance_prompt": "a sks dog",
        "class_prompt": "a dog",
        "class_data": str(write(tmp_path / "class", 3, seed=50)),
        "num_class_images": 3,
        "data": {"size": 32, "flip": True},
    }


@pytest.mark.parametrize("prior_loss_weight", [1.0, 0.3])
def test_the_loss_is_that_of_diffusers(
    parts: Path, options: dict[str, Any], tmp_path: Path, prior_loss_weight: float
) -> None:
    """train_dreambooth.py: the mean of the instances plus λ times the mean of the class."""
    options |= {"prior_loss_weight": prior_loss_weight}
    recipe = build(parts, tmp_path / "thing", tmp_path / "run", **options)
    recipe.prepare(Accelerator(cpu=True))
    batch = recipe.batch(0, step_generator(0, 0))
    output = torch.randn(batch["x0"].shape, generator=torch.Generator().manual_seed(1))
    target = recipe.scheduler.target(batch["x0"], batch["noise"], batch["t"])
    (ours, prior), (wanted, wanted_prior) = output.chunk(2), target.chunk(2)
    loss = F.mse_loss(ours, wanted) + prior_loss_weight * F.mse_loss(prior, wanted_prior)
    assert float(recipe.error(output, batch)[0]) == pytest.approx(float(loss), abs=1e-6)
    # And as several processes share it, each a part of the rows.
    pieces = [
        {key: value[part] for key, value in batch.items()} for part in torch.arange(8).chunk(4)
    ]
    outputs = zip(output.chunk(4), pieces, strict=True)
    each = [recipe.error(part, rows)[0] for part, rows in outputs]
    assert float(torch.stack(each).mean()) == pytest.approx(float(loss), abs=1e-6)


def test_half_of_each_batch_are_class_pictures_of_its_size(
    parts: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    options |= {"buckets": {"multiple": 8}, "caption_dropout": 0.0, "caption_prefix": "big"}
    recipe = build(parts, tmp_path / "thing", tmp_path / "run", **options)
    recipe.prepare(Accelerator(cpu=True))
    sizes, seen = set(), set()
    for step in range(12):
        drawn = recipe.latents.draw(6, step_generator(0, step))
        rows = drawn.rows.tolist()
        assert all(row < 5 for row in rows[:3]) and all(row >= 5 for row in rows[3:])
        assert recipe.texts(drawn.rows) == ["big a sks dog"] * 3 + ["a dog"] * 3
        sizes.add(tuple(drawn.latents.shape[2:]))
        seen |= set(rows)
        if drawn.mirrored.any():
            continue
        size = tuple(4 * side for side in drawn.latents.shape[2:])
        with torch.no_grad():
            expected = recipe.vae.encode(recipe.data.pixels(drawn.rows, size))
        assert (drawn.latents - expected).abs().max() < 0.03 * expected.abs().max()
    assert seen == set(range(8)) and len(sizes) == 3
    again = build(parts, tmp_path / "thing", tmp_path / "run", **options)
    again.prepare(Accelerator(cpu=True))
    batch, other = (each.batch(9, step_generator(0, 9)) for each in (recipe, again))
    assert all(torch.equal(value, other[key]) for key, value in batch.items())


def test_masks_are_of_instances_alone(parts: Path, options: dict[str, Any], tmp_path: Path) -> None:
    for i in range(5):
        Image.new("L", SIZES[i][::-1], 51).save(tmp_path / f"thing/{i}-masklabel.png")
    options["data"]["mask"] = "masklabel"
    recipe = build(parts, tmp_path / "thing", tmp_path / "run", **options)
    recipe.prepare(Accelerator(cpu=True))
    mask = recipe.batch(0, step_generator(0, 0))["mask"].amax((1, 2, 3))
    assert torch.allclose(mask, torch.tensor([0.2] * 4 + [1.0] * 4), atol=1e-3)


def test_prompts_are_for_pictures_without_captions(
    parts: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "thing/2.txt").write_text("my sks dog on grass")
    (tmp_path / "class/1.txt").write_text("a black dog")
    recipe = build(parts, tmp_path / "thing", tmp_path / "run", **options)
    recipe.prepare(Accelerator(cpu=True))
    texts = recipe.data.captions(torch.arange(8))
    assert texts == ["a sks dog"] * 2 + ["my sks dog on grass"] + ["a sks dog"] * 2 + [
        "a dog",
        "a black dog",
        "a dog",
    ]


def test_captions_without_the_new_word_are_counted(
    parts: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "thing/2.txt").write_text("my dog on grass")
    recipe = build(parts, tmp_path / "thing", tmp_path / "run", **options)
    with pytest.warns(UserWarning, match="1 of 5 captions lack the word 'sks'"):
        recipe.prepare(Accelerator(cpu=True))
    assert recipe.data.captions(recipe.rows_to_learn)[2] == "my dog on grass"
    assert len(recipe.rows_to_learn) == 5


def test_options_that_do_not_go_together(
    parts: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    source = tmp_path / "thing"
    with pytest.raises(ArgumentError, match="batch_size is 3, but half of each batch"):
        build(parts, source, tmp_path / "run", batch_size=3, **options)
    without = {key: value for key, value in options.items() if key != "class_prompt"}
    with pytest.raises(ArgumentError, match=r"give options\.class_prompt"):
        build(parts, source, tmp_path / "run", **without)
    recipe = build(parts, source, tmp_path / "run", **options | {"num_class_images": 9})
    with pytest.raises(DataError, match="6 of 9 class pictures are missing"):
        recipe.prepare(Accelerator(cpu=True))
    (tmp_path / "file").write_text("")
    recipe = build(parts, source, tmp_path / "run", **options | {"class_data": f"{tmp_path}/file"})
    with pytest.raises(DataError, match="file, which is no folder"):
        recipe.prepare(Accelerator(cpu=True))
    (tmp_path / "class/0.png").write_bytes(b"no picture")
    for name in ("1", "2"):
        (tmp_path / f"class/{name}.png").write_bytes(b"")
    recipe = build(parts, source, tmp_path / "run", **options)
    with pytest.warns(UserWarning), pytest.raises(DataError, match="none of the class pictures"):
        recipe.prepare(Accelerator(cpu=True))


def test_folders_that_kohya_prepares(tmp_path: Path) -> None:
    """``reg`` is not learnt as the thing itself; given alone, it is a set of class pictures."""
    write(tmp_path / "set/img/10_sks dog", 2)
    write(tmp_path / "set/reg/1_dog", 2)
    with pytest.raises(ArgumentError, match=r"both img and reg.*data = .*img' and .*reg'"):
        open_data(str(tmp_path / "set"))
    for name, caption in (("img", "sks dog"), ("reg", "dog")):
        data = open_data(str(tmp_path / "set" / name))
        assert data.captions(torch.arange(2)) == [caption] * 2


def test_class_pictures_that_are_missing_are_drawn(folder: Path, tmp_path: Path) -> None:
    """What is there is kept; number i is the picture of seed i, however often it was begun."""
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    pipe.defaults = replace(pipe.defaults, num_inference_steps=1)
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    assert len(draw_class_pictures(pipe, "a dog", whole, 5, batch_size=2)) == 5
    write(begun, 1)  # 0.png, of the user's
    own = (begun / "0.png").read_bytes()
    draw_class_pictures(pipe, "a dog", begun, 3, batch_size=2)
    assert sorted(path.name for path in begun.iterdir()) == ["0.png", "0000.png", "0001.png"]
    (begun / "0000.png").unlink()
    drawn = draw_class_pictures(pipe, "a dog", begun, 4, batch_size=2)
    assert [path.name for path in drawn] == ["0000.png", "0002.png"]
    assert (begun / "0.png").read_bytes() == own
    for name in ("0000.png", "0001.png", "0002.png"):
        ours, theirs = (np.asarray(Image.open(each / name), int) for each in (begun, whole))
        assert np.abs(ours - theirs).max() <= 1
    assert draw_class_pictures(pipe, "a dog", begun, 4) == []
    (begun / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n')
    with pytest.raises(ArgumentError, match=r"4 pictures of 6, and metadata\.jsonl"):
        draw_class_pictures(pipe, "a dog", begun, 6)


def test_a_run_draws_its_class_pictures_and_resumes(folder: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "thing", 4)
    options = {"base": str(folder), "instance_prompt": "sks dog", "class_prompt": "dog"}
    options |= {"num_class_images": 2, "data": {"size": 64}}  # type: ignore[dict-item]
    config = TrainConfig("lora", str(source), str(tmp_path), 4, 2, 1e-3)
    with pytest.raises(ArgumentError, match="keep_contexts keeps the states of a text encoder"):
        both = options | {"keep_contexts": True, "train_text_encoder": True}
        LoraRecipe(replace(config, options=both))
    for name, stops in (("a", [4]), ("b", [2, 4])):
        config = TrainConfig("lora", str(source), str(tmp_path / name), 4, 2, 1e-3)
        config = replace(config, options=options, warmup=0, mixed_precision="no")
        for last in stops:
            torch.manual_seed(0)
            for state in train_steps(config, LoraRecipe(config)):
                state.stop = state.step == last
        pictures = sorted(path.name for path in (tmp_path / name / "class_pictures").iterdir())
        assert pictures == ["0000.png", "0001.png"]
    files = [load_file(tmp_path / name / f"{name}.safetensors") for name in ("a", "b")]
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())
