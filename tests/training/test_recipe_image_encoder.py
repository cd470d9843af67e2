"""Training a picture encoder: CLIP's loss, what a batch holds, what is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoints.folder import load_component
from ldm.clip_vision import CLIPVisionEncoder
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.loop import train_steps
from ldm.training.objectives import contrastive_loss
from ldm.training.recipes.image_encoder import ImageEncoderRecipe
from tests.helpers.networks import difference

COLOURS = {"red": (220, 30, 30), "green": (20, 200, 40), "blue": (30, 40, 230)}
MODEL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
MODEL |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour each, which their captions name."""
    folder = tmp_path_factory.mktemp("plain")
    for i in range(30):
        name, colour = list(COLOURS.items())[i % 3]
        noise = np.random.default_rng(i).integers(-20, 20, (20, 24, 3))
        picture = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(name)
    return folder


def config_for(base: Path, source: Path, output: Path, steps: int) -> TrainConfig:
    config = TrainConfig("image_encoder", str(source), str(output), steps, 12, 5e-3, model=MODEL)
    options = {"base": str(base), "data": {"size": 16, "held_out": 9}, "temperature": 0.1}
    return replace(config, options=options, warmup=0, mixed_precision="no", ema_decay=0.5)


def test_the_loss_is_clips() -> None:
    """transformers' own, where all captions differ, with a temperature of 0.07."""
    clip = pytest.importorskip("transformers.models.clip.modeling_clip")
    pictures, texts = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    unit = [each / each.norm(dim=-1, keepdim=True) for each in (texts, pictures)]
    expected = clip.image_text_contrastive_loss(unit[0] @ unit[1].T / 0.07)
    assert (contrastive_loss(pictures, texts, torch.arange(7), 0.07) - expected).abs() < 1e-6


def test_rows_of_one_caption_are_equally_right() -> None:
    """Two pictures of one caption: the loss is least when each row names both, at ln 2."""
    states = torch.eye(3)[[0, 0, 1, 2]]
    caption = torch.tensor([0, 0, 1, 2])
    least = contrastive_loss(states, states, caption, 0.01)
    assert least.item() == pytest.approx(np.log(2) / 2, abs=1e-4)
    assert (contrastive_loss(states, states, torch.arange(4), 0.01) - least).abs() < 1e-4
    assert contrastive_loss(states, states.flip(0), caption, 0.01) > 10


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_it_learns_captions_of_pictures(
    models: Any, plain: Path, tmp_path: Path, family: str
) -> None:
    """After 40 steps, held-out pictures are nearest to their colour's name."""
    _, theirs = models(family)
    theirs.save_pretrained(tmp_path / "base")
    config = config_for(tmp_path / "base", plain, tmp_path / "run", 40)
    torch.manual_seed(0)
    recipe = ImageEncoderRecipe(config)
    batch = recipe.batch(0, step_generator(0, 0))
    assert batch["pictures"].shape == (12, 3, 16, 16)
    assert batch["caption"].max() == 2
    assert recipe.evaluate(recipe.model)[1]["own_caption"] < 0.8
    figures = [state.metrics for state in train_steps(config, recipe)][-1]
    assert figures["own_caption"] == 1
    saved = load_component(CLIPVisionEncoder, tmp_path / "run/image_encoder", torch.float32)
    pictures = batch["pictures"]
    with torch.no_grad():
        drawn = saved(pictures).image_embeds
        assert drawn.shape[1] == recipe.text.encoder(batch["ids"]).pooled.shape[1]
    assert difference(drawn, drawn.flip(0)) > 0.1
