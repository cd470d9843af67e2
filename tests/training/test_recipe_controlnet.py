"""Training ControlNets: diffusers' formula and first update, control pictures, what is saved."""

from __future__ import annotations

import json
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

from ldm.checkpoints.folder import save_component
from ldm.control.controlnet import ControlNet
from ldm.control.preprocessors import canny
from ldm.errors import ArgumentError
from ldm.images import to_pil
from ldm.pipeline import Pipeline
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.loop import Trainer, train_steps
from ldm.training.recipes.controlnet import ControlNetRecipe
from tests.helpers.controlnets import HINTS
from tests.helpers.networks import difference, randomize

diffusers = pytest.importorskip("diffusers")
SIZE = 64


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures with captions and a column of control pictures."""
    folder = tmp_path_factory.mktemp("drawings")
    rows = []
    for i in range(8):
        rng = np.random.default_rng(i)
        for name in (f"{i}.png", f"edges-{i}.png"):
            small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
            small.resize((SIZE, SIZE + 16), Image.Resampling.BICUBIC).save(folder / name)
        row = {"file_name": f"{i}.png", "text": f"picture {i}", "edges": f"edges-{i}.png"}
        rows.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows))
    return folder


def config_for(base: Path, source: Path, output: Path, **options: Any) -> TrainConfig:
    own = {"base": str(base), "data": {"size": SIZE, "held_out": 2}, "shown": 2}
    if "preprocessors" not in options:
        own["control"] = "edges"
    model = {"conditioning_embedding_out_channels": [8, 8, 16, 16]}
    config = TrainConfig("controlnet", str(source), str(output), 1, 4, 1e-3, model=model)
    return replace(
        config, options=own | options, warmup=0, decay_from=1.0, mixed_precision="no",
        max_grad_norm=float("inf"), ema_decay=0.0,
    )  # fmt: skip


def trained_by_diffusers(theirs: Any, network: Any, batch: dict[str, torch.Tensor]) -> float:
    """Update ``network`` once by train_controlnet(_sdxl).py's formulas; returns the loss."""
    schedule = diffusers.DDPMScheduler.from_config(theirs.scheduler.config)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    noisy = schedule.add_noise(batch["x0"], batch["noise"], batch["t"])
    ids = batch["ids"].long()
    added: dict[str, torch.Tensor] = {}
    if "XL" in type(theirs).__name__:
        states = [
            encoder(ids[:, i], output_hidden_states=True)
            for i, encoder in enumerate((theirs.text_encoder, theirs.text_encoder_2))
        ]
        text = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
        sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * len(ids))
        added = {"text_embeds": states[1][0], "time_ids": sizes}
    else:
        text = theirs.text_encoder(ids[:, 0])[0]
    down, middle = network(
        noisy, batch["t"], encoder_hidden_states=text, controlnet_cond=batch["hint"],
        added_cond_kwargs=added, return_dict=False,
    )  # fmt: skip
    output = theirs.unet(
        noisy, batch["t"], encoder_hidden_states=text, added_cond_kwargs=added,
        down_block_additional_residuals=down, mid_block_additional_residual=middle,
    ).sample  # fmt: skip
    kind = schedule.config.prediction_type
    target = batch["noise"]
    if kind == "v_prediction":
        target = schedule.get_velocity(batch["x0"], batch["noise"], batch["t"])
    loss = F.mse_loss(output.float(), target.float(), reduction="mean")
    loss.backward()
    optimizer.step()
    return float(loss)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl"])
def test_the_loss_and_the_first_update_are_diffusers(
    bases: Any, drawings: Path, tmp_path: Path, family: str
) -> None:
    """In float32: the loss within 1e-6; of the weights, each within 1e-5 but for a few.

    AdamW's first step is the sign of a gradient, so where this is but rounding, it may differ.
    """
    base, theirs = bases(family)
    unet = Pipeline.from_pretrained(base, device="cpu").unet
    begun = randomize(ControlNet.from_unet(unet, **HINTS), 7)
    save_component(begun, tmp_path / "begun")
    config = replace(config_for(base, drawings, tmp_path / "run"), start=str(tmp_path / "begun"))
    trainer = Trainer(config, ControlNetRecipe(config))
    trainer.start()
    batch = trainer.recipe.batch(0, step_generator(config.seed, 0))
    state = trainer.train_step(0)
    loss = trainer.metrics.take(trainer.accelerator, 1.0)["loss"]
    network = diffusers.ControlNetModel.from_pretrained(tmp_path / "begun")
    before = {name: value.clone() for name, value in network.named_parameters()}
    assert loss == pytest.approx(trained_by_diffusers(theirs, network, batch), abs=1e-6)
    assert state.step == 1
    ours = trainer.recipe.model.network.state_dict()
    moved, apart = 0, []
    for name, value in network.state_dict().items():
        moved += int(not torch.equal(before[name], value))
        apart.append((ours[name] - value).abs().flatten())
    assert moved > 0.9 * len(before)
    assert (torch.cat(apart) > 1e-5).float().mean() < 1e-3
    trainer.end()


def test_it_begins_as_the_base(bases: Any, drawings: Path, tmp_path: Path) -> None:
    """With zero convolutions nothing is added, and only these and the hint's last get gradients."""
    base, _ = bases("sd")
    recipe = ControlNetRecipe(config_for(base, drawings, tmp_path))
    recipe.prepare(Accelerator(cpu=True))
    batch = recipe.batch(0, step_generator(0, 0))
    loss, _ = recipe.loss(recipe.model, batch)
    with torch.no_grad():
        output = recipe.pipe.unet(recipe.x_t(batch), batch["t"], **recipe.conditions(batch))
    assert torch.equal(loss.detach(), recipe.error(output, batch)[0])
    loss.backward()
    network = recipe.model.network
    learns = {n.split(".")[0] for n, p in network.named_parameters() if p.grad.abs().max() > 0}
    assert learns == {"controlnet_down_blocks", "controlnet_mid_block"}
    assert all(parameter.grad is None for parameter in recipe.pipe.unet.parameters())


def test_control_pictures_are_a_columns(bases: Any, drawings: Path, tmp_path: Path) -> None:
    """They are cropped and mirrored as the pictures are, and are no pictures left out."""
    base, _ = bases("sd")
    data = {"size": SIZE, "held_out": 0, "flip": True}
    recipe = ControlNetRecipe(config_for(base, drawings, tmp_path, data=data))
    assert len(recipe.data) == 8
    recipe.prepare(Accelerator(cpu=True))
    rows, _, mirrored, *_ = recipe.latents.draw(4, step_generator(0, 3))
    hints = recipe.batch(3, step_generator(0, 3))["hint"]
    assert mirrored.any() and not mirrored.all()
    for row, turned, hint in zip(rows.tolist(), mirrored.tolist(), hints, strict=True):
        picture = np.asarray(Image.open(drawings / f"edges-{row}.png"))[8:-8] / 255
        picture = np.flip(picture, 1) if turned else picture
        assert np.abs(hint.permute(1, 2, 0).numpy() - picture).max() < 1e-6


def test_control_pictures_of_arrays(bases: Any, tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "arrays"
    folder.mkdir()
    for name in ("images.npy", "edges.npy"):
        np.save(folder / name, rng.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8))
    (folder / "metadata.jsonl").write_text('{"text": "a"}\n' * 4)
    recipe = ControlNetRecipe(
        config_for(bases("sd")[0], folder, tmp_path / "run", control="edges.npy")
    )
    found = recipe.hints(torch.tensor([2]), (SIZE, SIZE), [])[0] * 255
    assert (found.permute(1, 2, 0).numpy() - np.load(folder / "edges.npy")[2]).max() < 1e-3


def test_preprocessors_make_control_pictures(bases: Any, drawings: Path, tmp_path: Path) -> None:
    base, _ = bases("sd")
    recipe = ControlNetRecipe(config_for(base, drawings, tmp_path, preprocessors=["canny"]))
    recipe.prepare(Accelerator(cpu=True))
    rows = recipe.latents.draw(4, step_generator(0, 0)).rows
    hints = recipe.batch(0, step_generator(0, 0))["hint"]
    pictures = to_pil(recipe.data.pixels(rows, SIZE))
    expected = np.stack([np.asarray(canny(picture)) for picture in pictures])
    assert torch.equal((hints * 255).round().byte().permute(0, 2, 3, 1), torch.tensor(expected))


def test_a_run_resumes_and_its_result_is_drawn_with(
    bases: Any, drawings: Path, tmp_path: Path
) -> None:
    base, _ = bases("sd")
    whole, parts = (
        replace(config_for(base, drawings, tmp_path / name), steps=4) for name in ("a", "b")
    )
    for config, last in ((whole, 4), (parts, 2), (parts, 4)):
        torch.manual_seed(0)  # of the new layers, as ``ldm train`` has it
        for state in train_steps(config, ControlNetRecipe(config)):
            state.stop = state.step == last
    files = [
        load_file(tmp_path / name / "controlnet/diffusion_pytorch_model.safetensors")
        for name in ("a", "b")
    ]
    assert max(difference(files[0][name], files[1][name]) for name in files[0]) == 0
    sample = Image.open(tmp_path / "a/samples/00000004.png")
    assert sample.size == (2 * SIZE, 2 * SIZE)  # control pictures over what is drawn
    pipe = Pipeline.from_pretrained(base, controlnet=tmp_path / "a", device="cpu")
    settings = {"num_inference_steps": 2, "output_type": "latent", "seed": 0, "height": SIZE}
    settings |= {"width": SIZE, "control_image": drawings / "edges-0.png"}
    steered = pipe("a", **settings).images
    plain = pipe("a", **settings, controlnet_conditioning_scale=0.0).images
    assert not torch.equal(steered, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preprocessors": ["hed"]}, "preprocessors has 'hed'; expected canny, grey"),
        ({"preprocessors": ["canny"], "control": "edges"}, "give options.control"),
        ({"control": "egdes"}, r"no column 'egdes'; it has file_name, text, edges"),
    ],
)
def test_options_that_cannot_work(
    bases: Any, drawings: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        ControlNetRecipe(config_for(bases("sd")[0], drawings, tmp_path, **options))


def test_a_base_for_another_task_is_refused(bases: Any, drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="a model for inpainting; give one that draws"):
        ControlNetRecipe(config_for(bases("sd_inpaint")[0], drawings, tmp_path))


def test_a_control_picture_for_each(bases: Any, drawings: Path, tmp_path: Path) -> None:
    """A row without one is refused, not left out: pictures would go with others' drawings."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    for file in drawings.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "edges-3.png").unlink()
    with (
        pytest.warns(UserWarning, match="not there"),
        pytest.raises(ArgumentError, match="8 pictures, but 7 control pictures"),
    ):
        ControlNetRecipe(config_for(bases("sd")[0], folder, tmp_path / "run"))
