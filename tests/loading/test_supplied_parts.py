"""Files that lack parts, which others supply; the result is bit-equal to the whole model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.cli import convert
from ldm.errors import CheckpointError
from ldm.pipeline import Pipeline
from tests.loading.test_single_file import files  # noqa: F401  # a fixture

pytest.importorskip("diffusers")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXTS = ("cond_stage_model.", "conditioner.")
Tensors = dict[str, torch.Tensor]


def split(path: Path) -> tuple[Path, Path, Path]:
    """The U-Net, the VAE and the text encoders of a file, each in one of its own."""
    tensors = load_file(path)
    parts = []
    for name, prefixes in (("unet", (UNET,)), ("vae", (VAE,)), ("text", TEXTS)):
        mine = {key: value for key, value in tensors.items() if key.startswith(prefixes)}
        parts.append(path.with_name(f"{name}.safetensors"))
        save_file(mine, parts[-1])
    return parts[0], parts[1], parts[2]


def same(ours: Pipeline, other: Pipeline) -> bool:
    names = [name for name, part in ours.parts.items() if isinstance(part, torch.nn.Module)]
    return all(
        torch.equal(value, getattr(other, name).state_dict()[key])
        for name in names
        for key, value in getattr(ours, name).state_dict().items()
    )


@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl", "refiner"])
def test_a_file_of_the_unet_alone(files: Any, name: str) -> None:  # noqa: F811
    ours, _, path = files(name)
    unet, vae, text = split(path)
    load = {"device": "cpu", "prediction_type": ours.scheduler.config.prediction_type}
    assert same(ours, Pipeline.from_pretrained(unet, vae=vae, text_encoder=text, **load))
    with pytest.raises(CheckpointError, match="lacks a VAE; give one: --vae FILE"):
        Pipeline.from_pretrained(unet, text_encoder=text, **load)
    with pytest.raises(
        CheckpointError, match=r"lacks the text encoders? of width .*\d+; give (one|them): --t"
    ):
        Pipeline.from_pretrained(unet, vae=vae, **load)


@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl", "ssd1b", "koala", "bk_tiny", "pix2pix"])
def test_a_unet_of_a_folder_alone(files: Any, tmp_path: Path, name: str) -> None:  # noqa: F811
    """diffusers' names: the file of the folder ``unet``, there and elsewhere."""
    ours, _, path = files(name)
    _, vae, text = split(path)
    ours.save_pretrained(tmp_path / "whole")
    unet = tmp_path / "whole" / "unet" / "diffusion_pytorch_model.safetensors"
    moved = unet.rename(tmp_path / "moved.safetensors")
    load = {"device": "cpu", "prediction_type": ours.scheduler.config.prediction_type}
    pipe = Pipeline.from_pretrained(moved, vae=vae, text_encoder=text, **load)
    assert same(ours, pipe)
    assert pipe.unet.config == ours.unet.config
    with pytest.raises(
        CheckpointError, match=r"lacks a VAE and the text encoders? of .*--vae FILE"
    ):
        Pipeline.from_pretrained(moved, **load)
    moved.rename(unet)
    with pytest.raises(CheckpointError, match=r"or give the whole folder, .*whole$"):
        Pipeline.from_pretrained(unet, **load)
    pipe = Pipeline.from_pretrained(
        unet, vae=vae, text_encoder=text, device="cpu"
    )  # what it predicts is in the folder
    assert pipe.scheduler.config.prediction_type == ours.scheduler.config.prediction_type


def test_a_unet_without_its_prefix(files: Any) -> None:  # noqa: F811
    ours, _, path = files("sd")
    unet, vae, text = split(path)
    bare = {key.removeprefix(UNET): value for key, value in load_file(unet).items()}
    save_file(bare | {"v_pred": torch.zeros(0)}, unet)
    pipe = Pipeline.from_pretrained(unet, device="cpu", vae=vae, text_encoder=text)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    save_file(bare, unet)
    pipe = Pipeline.from_pretrained(unet, device="cpu", vae=vae, text_encoder=text)
    assert same(ours, pipe)


def flat(tensors: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def test_two_files_of_text_encoders(files: Any, tmp_path: Path) -> None:  # noqa: F811
    """As ComfyUI's clip_l and clip_g, in either order; and each from its own folder."""
    ours, _, path = files("sdxl")
    unet, vae, text = split(path)
    tensors = load_file(text)
    small, large = tmp_path / "clip_l.safetensors", tmp_path / "clip_g.safetensors"
    save_file(flat(tensors, "conditioner.embedders.0.transformer."), small)
    save_file(flat(tensors, "conditioner.embedders.1.model."), large)
    for texts in ([small, large], [large, small]):
        pipe = Pipeline.from_pretrained(unet, device="cpu", vae=vae, text_encoder=texts)
        assert same(ours, pipe)
    ours.save_pretrained(tmp_path / "folder")
    for texts in (
        [tmp_path / "folder"],
        [tmp_path / "folder" / "text_encoder_2", str(small)],
    ):
        pipe = Pipeline.from_pretrained(unet, device="cpu", vae=vae, text_encoder=texts)
        assert same(ours, pipe)
    with pytest.raises(CheckpointError, match="lacks the text encoder of width 48"):
        Pipeline.from_pretrained(unet, device="cpu", vae=vae, text_encoder=small)
    # Without the prefix, as transformers ≥ 5.6 saves one; in the names of SD 3.
    mine, again = load_file(small), tmp_path / "again.safetensors"
    for names in (
        {k.removeprefix("text_model."): v for k, v in mine.items()},
        {f"text_encoders.clip_l.transformer.{k}": v for k, v in mine.items()},
    ):
        save_file(names, again)
        pipe = Pipeline.from_pretrained(unet, device="cpu", vae=vae, text_encoder=[again, large])
        assert same(ours, pipe)


def test_a_text_encoder_in_the_place_of_the_own(files: Any, tmp_path: Path) -> None:  # noqa: F811
    ours, _, path = files("sd")
    ours.save_pretrained(tmp_path / "folder")
    other = {k: v + 1 if v.is_floating_point() else v for k, v in load_file(path).items()}
    save_file(other, tmp_path / "other.safetensors")
    for model in (path, tmp_path / "folder"):
        pipe = Pipeline.from_pretrained(
            model, device="cpu", text_encoder=tmp_path / "other.safetensors"
        )
        for key, value in ours.text_encoder.state_dict().items():
            assert torch.equal(pipe.text_encoder.state_dict()[key], value + 1)
        assert torch.equal(pipe.unet.conv_in.weight, ours.unet.conv_in.weight)


def test_the_command_takes_them(files: Any, tmp_path: Path) -> None:  # noqa: F811
    ours, _, path = files("sd")
    unet, vae, text = split(path)
    out = tmp_path / "whole.safetensors"
    options = ["--vae", str(vae), "--text-encoder", str(text)]
    assert convert.main([str(unet), str(out), *options]) == 0
    assert same(ours, Pipeline.from_pretrained(out, device="cpu"))


def test_text_encoders_that_do_not_fit(files: Any, tmp_path: Path) -> None:  # noqa: F811
    _, _, path = files("sd")
    unet, vae, _ = split(path)
    wrong = tmp_path / "wrong.safetensors"
    for tensors, message in (
        ({"x": torch.zeros(1)}, "wrong.safetensors holds no text encoder of width 32.*found none"),
        ({"token_embedding.weight": torch.zeros(4, 99)}, "found one of 99"),
        ({"token_embedding.weight": torch.zeros(4, 32)}, "wrong.safetensors lacks"),
        ({"token_embedding.weight": torch.zeros(4)}, "found none"),
    ):
        save_file(tensors, wrong)
        with pytest.raises(CheckpointError, match=message):
            Pipeline.from_pretrained(unet, device="cpu", vae=vae, text_encoder=wrong)
    with pytest.raises(CheckpointError, match="nowhere does not exist; give a text encoder"):
        Pipeline.from_pretrained(path, device="cpu", text_encoder=tmp_path / "nowhere")
