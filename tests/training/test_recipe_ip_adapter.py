"""Training IP-Adapters: the loss of diffusers' pipeline parts, how it begins, what is saved."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image

from ldm.checkpoints.folder import save_component
from ldm.clip_vision import CLIPVisionEncoder
from ldm.config import CLIPVisionConfig
from ldm.control.ip_adapter import transformer_blocks
from ldm.images import to_pil
from ldm.images.clip_pixels import clip_pixels
from ldm.loading.ip_adapter import NAME, save_ip_adapter
from ldm.pipeline import Pipeline
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.loop import train_steps
from ldm.training.recipes.ip_adapter import IPAdapterRecipe
from tests.helpers.networks import randomize

diffusers = pytest.importorskip("diffusers")
SIZE = 64
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "image_size": 16}
VISION |= {"num_attention_heads": 2, "patch_size": 8, "projection_dim": 24}


@pytest.fixture(scope="module")
def parts(models: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with a base, an image encoder and eight pictures, and diffusers' base."""
    folder = tmp_path_factory.mktemp("parts")
    _, theirs = models("sd")
    theirs.save_pretrained(folder / "base")
    encoder = randomize(CLIPVisionEncoder(CLIPVisionConfig.from_dict(VISION)), 3)
    save_component(encoder, folder / "image_encoder")
    (folder / "data").mkdir()
    for i in range(8):
        small = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
        picture = Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        picture.save(folder / f"data/{i}.png")
        (folder / f"data/{i}.txt").write_text(f"picture {i}")
    return folder, copy.deepcopy(theirs)


def config_for(folder: Path, output: Path, kind: str = "base", **options: Any) -> TrainConfig:
    model: dict[str, Any] = {"kind": kind, "num_tokens": 4}
    if kind == "plus":
        model |= {"hidden_size": 64, "num_heads": 1, "num_layers": 1}
    config = TrainConfig("ip_adapter", str(folder / "data"), str(output), 3, 4, 1e-3, model=model)
    own = {"base": str(folder / "base"), "image_encoder": str(folder / "image_encoder")}
    own |= {"data": {"size": SIZE, "held_out": 2}, "prompts": ["a", "b"]}
    return replace(config, options=own | options, warmup=0, mixed_precision="no", ema_decay=0.5)


@pytest.mark.parity
def test_the_loss_is_diffusers(parts: tuple[Path, Any], tmp_path: Path) -> None:
    """Within 1e-6, with diffusers' attention processors and image projection, pictures left out."""
    folder, theirs = parts
    recipe = IPAdapterRecipe(config_for(folder, tmp_path, image_dropout=0.5))
    randomize(recipe.model.adapter, 5)
    recipe.prepare(Accelerator(cpu=True))
    batch = recipe.batch(0, step_generator(0, 0))
    assert batch["without"].any() and not batch["without"].all()
    with torch.no_grad():
        loss, _ = recipe.loss(recipe.model, batch)
    save_ip_adapter(recipe.model.adapter, tmp_path / "adapter.safetensors")
    theirs.load_ip_adapter(
        str(tmp_path), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None
    )
    schedule = diffusers.DDPMScheduler.from_config(theirs.scheduler.config)
    noisy = schedule.add_noise(batch["x0"], batch["noise"], batch["t"])
    with torch.no_grad():
        embeds = recipe.encoder(batch["pictures"]).image_embeds
        embeds = embeds * ~batch["without"][:, None]
        output = theirs.unet(
            noisy,
            batch["t"],
            encoder_hidden_states=theirs.text_encoder(batch["ids"][:, 0].long())[0],
            added_cond_kwargs={"image_embeds": [embeds[:, None]]},
        ).sample
    assert (F.mse_loss(output, batch["noise"]) - loss).abs() < 1e-6
    theirs.unload_ip_adapter()


def test_it_begins_with_the_texts_keys_and_values(parts: tuple[Path, Any], tmp_path: Path) -> None:
    recipe = IPAdapterRecipe(config_for(parts[0], tmp_path))
    layers = recipe.model.adapter.ip_adapter.values()
    for block, layer in zip(transformer_blocks(recipe.pipe.unet), layers, strict=True):
        assert torch.equal(block.attn2.to_k.weight, layer.to_k_ip.weight)  # type: ignore[union-attr]
        assert torch.equal(block.attn2.to_v.weight, layer.to_v_ip.weight)  # type: ignore[union-attr]


def test_a_batch_holds_each_rows_own_picture(parts: tuple[Path, Any], tmp_path: Path) -> None:
    """Mirrored as its latents are; half of the rows without a caption are without it, too."""
    data = {"size": SIZE, "held_out": 0, "flip": True}
    recipe = IPAdapterRecipe(
        config_for(parts[0], tmp_path, data=data, caption_dropout=1.0, image_dropout=0.0)
    )
    recipe.prepare(Accelerator(cpu=True))
    drawn = recipe.latents.draw(4, step_generator(0, 2))
    batch = recipe.batch(2, step_generator(0, 2))
    assert drawn.mirrored.any() and not drawn.mirrored.all()
    pixels = recipe.data.pixels(drawn.rows, SIZE)
    pixels[drawn.mirrored] = pixels[drawn.mirrored].flip(-1)
    assert torch.equal(batch["pictures"], clip_pixels(to_pil(pixels), 16))
    many = torch.cat([recipe.batch(i, step_generator(0, i))["without"] for i in range(40)])
    assert 0.3 < many.float().mean() < 0.7


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_a_run_is_trained_and_drawn_with(
    parts: tuple[Path, Any], tmp_path: Path, kind: str
) -> None:
    """All weights get gradients; the U-Net's get none; its file loads and changes the picture."""
    folder, _ = parts
    config = config_for(folder, tmp_path, kind)
    recipe = IPAdapterRecipe(config)
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    for _ in train_steps(config, recipe):
        pass
    moved = [
        name for name, value in recipe.model.state_dict().items() if (value != before[name]).any()
    ]
    assert len(moved) == len(before)
    assert all(parameter.grad is None for parameter in recipe.pipe.unet.parameters())
    assert Image.open(tmp_path / "samples/00000003.png").size == (2 * SIZE, 2 * SIZE)
    pipe = Pipeline.from_pretrained(folder / "base", device="cpu")
    pipe.load_ip_adapter(tmp_path / "ip_adapter" / NAME, image_encoder=folder / "image_encoder")
    settings = {"num_inference_steps": 2, "output_type": "latent", "seed": 0, "height": SIZE}
    settings |= {"width": SIZE, "ip_adapter_image": folder / "data/0.png"}
    read = pipe("a", **settings).images
    assert not torch.equal(read, pipe("a", **settings, ip_adapter_scale=0.0).images)
