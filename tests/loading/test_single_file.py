"""Single files under the original names: full-size layouts, small whole models, round trips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.checkpoints import family as families
from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.family import Family, read_family
from ldm.cli import convert
from ldm.errors import ArgumentError, CheckpointError
from ldm.loading import write_file
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from tests.helpers.families import FAMILIES as MODELS
from tests.helpers.families import for_task
from tests.helpers.pictures import AS_DIFFUSERS, assert_same, draw, draw_theirs, generator

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]

# Small models of MODELS → the family whose layout they have.
LAYOUTS = {
    "sd": "sd1", "sd_inpaint": "sd1", "lcm": "sd1", "sd2": "sd2", "sdxl": "sdxl",
    "refiner": "sdxl_refiner", "sdxl_inpaint": "sdxl", "pix2pix": "sd1", "pix2pix_xl": "sdxl",
    "depth": "sd2", "ssd1b": "sdxl", "koala": "sdxl", "bk_tiny": "sd1",
}  # fmt: skip


def small(pipe: Pipeline, layout: str) -> Family:
    """The family of a small model: its own sizes, the layout of the full-size one."""
    full = read_family(layout)
    texts = tuple(replace(text, config=getattr(pipe, text.part).config) for text in full.texts)
    config = replace(pipe.scheduler.config, prediction_type="epsilon")
    unet = replace(pipe.unet.config, in_channels=4, time_cond_proj_dim=None)
    if unet.mid_block_type != "UNetMidBlock2DCrossAttn":  # distilled: of a family with all layers
        unet = replace(
            unet,
            layers_per_block=2,
            mid_block_type="UNetMidBlock2DCrossAttn",
            transformer_layers_per_block=10,
            reverse_transformer_layers_per_block=None,
        )
    return replace(full, unet=unet, vae=pipe.vae.config, scheduler=config, texts=texts)


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], tuple[Pipeline, Any, Path]]]:
    """(our pipeline from a single file, theirs, the file) of a small model.

    The file is beside the folder that theirs was saved to. Files of its sizes load until the next.
    """
    made: dict[str, Any] = {}
    patch = pytest.MonkeyPatch()

    def get(name: str) -> tuple[Pipeline, Any, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            theirs = MODELS[name]()
            theirs.save_pretrained(folder)
            from_folder = Pipeline.from_pretrained(folder, device="cpu")
            made[name] = theirs, from_folder, small(from_folder, LAYOUTS[name])
        theirs, from_folder, family = made[name]
        for module in (families, write_file):
            patch.setattr(module, "FAMILIES", {family.unet.cross_attention_dim: name})
            patch.setattr(module, "read_family", lambda _: family)
        path = tmp_path_factory.mktemp(name) / "single.safetensors"
        from_folder.save_single_file(path)
        return Pipeline.from_pretrained(path, device="cpu"), theirs, path

    yield get
    patch.undo()


TASKS = {
    "text": ["sd", "lcm", "sd2", "sdxl", "ssd1b", "koala", "bk_tiny"],
    "image": ["sd", "sd2", "lcm", "sdxl", "refiner"],
    "inpaint": ["sd", "sd2", "lcm", "sd_inpaint", "sdxl", "refiner", "sdxl_inpaint"],
}


@pytest.mark.parity
@pytest.mark.parametrize(("task", "name"), [(task, name) for task in TASKS for name in TASKS[task]])
def test_a_single_file_draws_diffusers_pictures(
    files: Any, picture: Image.Image, mask: Image.Image, task: str, name: str
) -> None:
    ours, theirs, _ = files(name)
    arguments: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
    if task != "image":
        arguments |= {"height": 40, "width": 64}
    if task != "text":
        arguments |= {"image": picture, "strength": 0.7}
    if task == "inpaint":
        arguments["mask_image"] = mask
    want = draw_theirs(for_task(theirs, task), generator=generator(3), **arguments)
    own = AS_DIFFUSERS if task == "inpaint" else {}
    assert_same(draw(ours, seed=3, **arguments, **own), want)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["pix2pix", "pix2pix_xl", "depth"])
def test_a_single_file_that_reads_more_than_noise(
    files: Any, picture: Image.Image, name: str
) -> None:
    ours, theirs, _ = files(name)
    small = picture.resize((64, 40))
    arguments: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "image": small}
    if name == "depth":
        arguments["depth_map"] = torch.rand(1, 40, 64, generator=generator(1))
    else:
        arguments["image_guidance_scale"] = 1.7
    if name == "pix2pix_xl":  # diffusers' has no callback
        more = {"height": 40, "width": 64, "generator": generator(3), "output_type": "latent"}
        want = theirs("a red car", **arguments, **more).images
        latents, _ = draw(ours, seed=3, **arguments)
        assert (latents - want).abs().max() <= 1e-4
        return
    want = draw_theirs(for_task(theirs, "own"), generator=generator(3), **arguments)
    assert_same(draw(ours, seed=3, **arguments), want)


# diffusers reads no single file of depth.
READ_BY_DIFFUSERS = [name for name in LAYOUTS if name not in ("lcm", "depth")]


@pytest.mark.parity
@pytest.mark.parametrize("name", READ_BY_DIFFUSERS)
def test_diffusers_reads_what_we_write(files: Any, name: str) -> None:
    _, theirs, path = files(name)
    theirs.save_pretrained(path.parent)
    loaded = type(theirs).from_single_file(path, config=str(path.parent), local_files_only=True)
    for part, module in theirs.components.items():
        if isinstance(module, torch.nn.Module):
            values = getattr(loaded, part).state_dict()
            for key, value in module.state_dict().items():
                assert torch.equal(values[key], value), f"{part} {key}"


def equal(pipe: Pipeline, other: Pipeline) -> bool:
    """Whether all weights are the same, to the bit."""
    parts = (
        (getattr(pipe, name), getattr(other, name)) for name in ("unet", "vae", "text_encoder")
    )
    return all(
        torch.equal(value, b.state_dict()[key])
        for a, b in parts
        for key, value in a.state_dict().items()
    )


def ema_name(key: str) -> str:
    return "model_ema." + key.removeprefix("model.").replace(".", "")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("suffix", ["ckpt", "pt"])
def test_pickles(files: Any, suffix: str, nested: bool, zipped: bool) -> None:
    """What a training run of CompVis leaves holds more than the weights."""
    ours, _, path = files("sd")
    tensors = load_file(path)
    extra = {
        "betas": torch.zeros(1000),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.zeros(1, 77),
        "first_stage_model.loss.logvar": torch.zeros(1),
        "model_ema.decay": torch.ones(()),
    }
    content = {"state_dict": tensors | extra, "epoch": 3} if nested else tensors
    file = path.with_name(f"x.{suffix}")
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert equal(ours, Pipeline.from_pretrained(file, device="cpu"))


def test_the_averaged_copy_of_a_training_checkpoint(files: Any) -> None:
    ours, _, path = files("sd")
    tensors = load_file(path)
    tensors |= {
        ema_name(key): value + 1
        for key, value in tensors.items()
        if key.startswith("model.diffusion_model.")
    }
    file = path.with_name("ema.ckpt")
    torch.save({"state_dict": tensors}, file)
    assert equal(ours, Pipeline.from_pretrained(file, device="cpu"))
    averaged = Pipeline.from_pretrained(file, device="cpu", ema=True)
    for key, value in ours.unet.state_dict().items():
        assert torch.equal(averaged.unet.state_dict()[key], value + 1)
    with pytest.raises(CheckpointError, match="no averaged copy of the weights"):
        Pipeline.from_pretrained(path, device="cpu", ema=True)
    with pytest.raises(ArgumentError, match="only single files"):
        Pipeline.from_pretrained(ema=True)


def test_text_encoders_without_their_prefix(files: Any) -> None:
    ours, _, path = files("sd")
    tensors = {key.replace(".text_model.", "."): value for key, value in load_file(path).items()}
    save_file(tensors, path.with_name("flat.safetensors"))
    assert equal(ours, Pipeline.from_pretrained(path.with_name("flat.safetensors"), device="cpu"))


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: value})


UNET = "model.diffusion_model."
BROKEN = [
    (drop(f"{UNET}out.2.bias"), "lacks conv_out.bias"),
    (drop("first_stage_model.quant_conv.bias"), "lacks quant_conv.bias"),
    (drop("cond_stage_model.model.ln_final.bias"), "lacks text_model.final_layer_norm.bias"),
    (put(f"{UNET}out.9.bias", torch.zeros(1)), "out.9.bias and 0 more tensors"),
    (put("first_stage_model.more", torch.zeros(1)), "of another architecture"),
    (put(f"{UNET}out.2.bias", torch.zeros(3)), r"conv_out.bias \(3,\) instead of \(4,\)"),
    (
        put("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias", torch.zeros(())),
        r"q_proj.bias \(\) instead of",
    ),
    (put("cond_stage_model.model.token_embedding.weight", torch.zeros(2)), "instead of"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_incomplete_and_foreign_files(files: Any, change: Callable, message: str) -> None:
    _, _, path = files("sd2")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        Pipeline.from_pretrained(path, device="cpu")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_unet_predicts_is_kept(files: Any) -> None:
    """Without a word on it, a file of 2.x is taken for one that predicts v."""
    ours, _, path = files("sd2")
    config = ours.scheduler.config
    for said, zero_snr in (("v_prediction", True), ("epsilon", False), ("sample", False)):
        changed = replace(config, prediction_type=said, rescale_betas_zero_snr=zero_snr)
        ours.scheduler = DDPMScheduler(changed)
        ours.save_single_file(path)
        again = Pipeline.from_pretrained(path, device="cpu").scheduler.config
        assert (again.prediction_type, again.rescale_betas_zero_snr) == (said, zero_snr)
    save_file(load_file(path), path)
    with pytest.warns(UserWarning, match="does not say what its U-Net predicts; v_prediction is"):
        Pipeline.from_pretrained(path, device="cpu")
    told = Pipeline.from_pretrained(path, device="cpu", prediction_type="epsilon")
    assert told.scheduler.config.prediction_type == "epsilon"
    with pytest.raises(ArgumentError, match="prediction_type is 'x'; expected one of 'epsilon'"):
        Pipeline.from_pretrained(path, device="cpu", prediction_type="x")
    save_file(load_file(path), path, {"modelspec.prediction_type": "flow"})
    with pytest.raises(CheckpointError, match=r"its modelspec\.prediction_type is 'flow'"):
        Pipeline.from_pretrained(path, device="cpu")


def bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "first_stage_model."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def save_any(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


VAES: dict[str, Callable[[Path, Path], Path]] = {
    "model folder": lambda folder, single: folder,
    "VAE folder": lambda folder, single: folder / "vae",
    "file of a folder": lambda folder, single: (
        folder / "vae" / "diffusion_pytorch_model.safetensors"
    ),
    "whole model": lambda folder, single: single,
    "original names": lambda folder, single: save_any(
        bare(load_file(single)), folder / "vae.safetensors"
    ),
    "training checkpoint": lambda folder, single: save_any(
        {"state_dict": bare(load_file(single)) | {"loss.logvar": torch.zeros(())}},
        folder / "vae.ckpt",
    ),
}


@pytest.mark.parametrize("form", VAES)
def test_another_vae(files: Any, tmp_path: Path, form: str) -> None:
    ours, _, path = files("sd")
    theirs = Pipeline.from_pretrained(path, device="cpu")
    with torch.no_grad():
        for parameter in theirs.vae.parameters():
            parameter += 1
    theirs.save_pretrained(tmp_path / "other")
    theirs.save_single_file(tmp_path / "other.safetensors")
    source = VAES[form](tmp_path / "other", tmp_path / "other.safetensors")
    pipe = Pipeline.from_pretrained(path, device="cpu", vae=source)
    for key, value in ours.vae.state_dict().items():
        assert torch.equal(pipe.vae.state_dict()[key], value + 1)
    assert torch.equal(pipe.unet.conv_in.weight, ours.unet.conv_in.weight)
    assert convert.main([str(path), str(tmp_path / "out"), "--vae", str(source)]) == 0
    again = Pipeline.from_pretrained(tmp_path / "out", device="cpu")
    assert torch.equal(again.vae.decoder.conv_in.weight, pipe.vae.decoder.conv_in.weight)


def test_a_vae_that_does_not_fit(files: Any, tmp_path: Path) -> None:
    _, _, path = files("sd")
    built_in = asset_path("weights") / "vae" / "diffusion_pytorch_model.safetensors"
    for source, message in (
        (tmp_path / "none", "none does not exist; give a VAE's folder or file"),
        (save_any({"x": torch.zeros(1)}, tmp_path / "x.safetensors"), "lacks encoder.conv_in"),
        (built_in, "is a VAE of 8 latent channels; this model has 4"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Pipeline.from_pretrained(path, device="cpu", vae=source)
