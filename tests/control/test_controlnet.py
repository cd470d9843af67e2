"""The network: diffusers' numbers on the same random weights; files of every layout."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoints.family import UNET, read_family
from ldm.checkpoints.folder import empty
from ldm.checkpoints.original import CONTROL, controlnet_names, read_original, write_original
from ldm.config import ControlNetConfig, UNetConfig
from ldm.control.controlnet import ControlNet, scaled
from ldm.errors import ArgumentError, CheckpointError
from ldm.loading import controlnet as loading
from ldm.loading.controlnet import config_of, load_controlnet
from ldm.unet import Residuals, UNet
from tests.helpers.networks import difference, ours_like, randomize
from tests.helpers.original_layouts import layout

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.parity

TINY: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "conditioning_embedding_out_channels": (4, 8, 8, 12),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "SD 1.x": {},
    "SD 2.x, two layers": {"use_linear_projection": True, "layers_per_block": 2},
    "SD XL": {
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 3),
        "attention_head_dim": (2, 4),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 10 + 6 * 8,
    },
    "SD XL small": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
    },
    "BGR": {"controlnet_conditioning_channel_order": "bgr"},
    "five channels, a half": {
        "conditioning_channels": 5,
        "conditioning_embedding_out_channels": (4, 8),
    },
    "means": {"global_pool_conditions": True},
}


def networks(name: str) -> tuple[ControlNet, Any]:
    theirs = randomize(diffusers.ControlNetModel(**TINY | LAYOUTS[name]), 3)
    return ours_like(theirs, ControlNet, ControlNetConfig.from_dict(dict(theirs.config))), theirs


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_numbers_are_diffusers(name: str, guess_mode: bool) -> None:
    """The largest difference is 1e-5, of outputs of about unit size."""
    ours, theirs = networks(name)
    config, generator = ours.config, torch.Generator().manual_seed(0)
    draw = [(2, 4, 5, 9), (2, 7, 12), (2, config.conditioning_channels)]
    size = (5 * config.hint_scale, 9 * config.hint_scale)
    x, context, hint = (torch.randn(s, generator=generator) for s in (*draw[:2], (*draw[2], *size)))
    t, xl = torch.tensor([981.0, 20.0]), {}
    if config.addition_embed_type:
        xl = {"pooled": torch.randn(2, 10, generator=generator), "time_ids": torch.rand(2, 6) * 99}
    got = scaled(
        ours(x, t, context, ours.embed_hint(hint), **xl), 0.7, guess_mode and name != "means"
    )
    added = {"text_embeds": xl.get("pooled"), "time_ids": xl.get("time_ids")}
    skips, middle = theirs(
        x, t, context, hint, 0.7, added_cond_kwargs=added, guess_mode=guess_mode, return_dict=False
    )
    for mine, its in zip(got, [*skips, middle], strict=True):
        assert difference(mine, its) <= 1e-5


def test_a_new_one_adds_nothing() -> None:
    """Zhang et al. 2023, section 3.2: before training, the zero convolutions give 0."""
    config = ControlNetConfig.from_dict(TINY)
    network = ControlNet(config)
    x, context = torch.randn(1, 4, 5, 9), torch.randn(1, 7, 12)
    hint = network.embed_hint(torch.rand(1, 3, 40, 72))
    assert not any(y.any() for y in network(x, torch.tensor([5.0]), context, hint))


def test_inputs_that_are_missing() -> None:
    ours, _ = networks("SD 1.x")
    with pytest.raises(ArgumentError, match="hint is missing"):
        ours(torch.randn(1, 4, 5, 9), torch.tensor([5.0]), torch.randn(1, 7, 12))


def test_the_unet_adds_residuals() -> None:
    settings = {name: value for name, value in TINY.items() if "conditioning" not in name}
    settings["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    theirs = randomize(diffusers.UNet2DConditionModel(**settings), 4)
    ours = ours_like(theirs, UNet, UNetConfig.from_dict(dict(theirs.config)))
    x, context, t = torch.randn(2, 4, 5, 9), torch.randn(2, 7, 12), torch.tensor([7.0, 800.0])
    shapes = [(16, 5, 9), (16, 5, 9), (16, 3, 5), (32, 3, 5), (32, 3, 5)]
    *skips, middle = (torch.randn(2, *shape) for shape in shapes)
    got = ours(x, t, context, residuals=Residuals(skips, middle))
    want = theirs(
        x, t, context, down_block_additional_residuals=skips, mid_block_additional_residual=middle
    ).sample
    assert difference(got, want) <= 1e-5


@pytest.mark.parametrize("name", LAYOUTS)
def test_configs_are_diffusers(name: str, tmp_path: Path) -> None:
    ours, theirs = networks(name)
    again = diffusers.ControlNetModel.from_config(ours.config.to_dict())
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert ControlNetConfig.from_dict(ours.config.to_dict()) == ours.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": None}, "cross_attention_dim"),
        ({"conditioning_channels": 0}, "conditioning_channels"),
        ({"conditioning_embedding_out_channels": []}, "conditioning_embedding_out_channels"),
        ({"controlnet_conditioning_channel_order": "grb"}, "'grb'; expected 'rgb' or 'bgr'"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"encoder_hid_dim": 7}, "encoder_hid_dim is 7"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name"),
        ({"down_block_types": 3}, "down_block_types"),
        ({"block_out_channels": [16, 30]}, "norm_num_groups 4"),
    ],
)
def test_configs_that_are_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ControlNetConfig.from_dict(TINY | changes)


# Files


def published(family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' files, put together by hand around the U-Net's."""
    kept = ("input_blocks.", "middle_block.", "time_embed.", "label_emb.")
    shapes = {
        CONTROL + name.removeprefix(UNET): tuple(shape)
        for name, shape in layout(family, 4).items()
        if name.removeprefix(UNET).startswith(kept) and name.startswith(UNET)
    }
    widths = {"sdxl": [320] * 4 + [640] * 3 + [1280] * 2}.get(
        family, [320] * 4 + [640] * 3 + [1280] * 5
    )
    convolutions = {f"zero_convs.{i}.0": (w, w, 1) for i, w in enumerate(widths)}
    convolutions["middle_block_out.0"] = (1280, 1280, 1)
    hint = [(16, 3), (16, 16), (32, 16), (32, 32), (96, 32), (96, 96), (256, 96), (320, 256)]
    convolutions |= {f"input_hint_block.{2 * i}": (*pair, 3) for i, pair in enumerate(hint)}
    for name, (out, into, side) in convolutions.items():
        shapes[f"{CONTROL}{name}.weight"] = (out, into, side, side)
        shapes[f"{CONTROL}{name}.bias"] = (out,)
    return shapes


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_full_size_files(family: str) -> None:
    """Nothing is missing and nothing left over; 361.3 M parameters of SD 1.x, as published."""
    tensors = {
        name.removeprefix(CONTROL): torch.empty(shape, device="meta")
        for name, shape in published(family).items()
    }
    config = config_of(Path("x"), {name: tuple(t.shape) for name, t in tensors.items()})
    with torch.device("meta"):
        theirs = diffusers.ControlNetModel.from_config(config.to_dict())
    expected = {name: t.shape for name, t in empty(ControlNet, config).state_dict().items()}
    assert expected == {name: t.shape for name, t in theirs.state_dict().items()}
    found = read_original(tensors, expected, "", controlnet_names(config))
    assert {name: t.shape for name, t in found.items()} == expected
    assert not tensors
    if family == "sd1":
        assert sum(shape.numel() for shape in expected.values()) == 361_279_120


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> tuple[ControlNet, UNetConfig]:
    """A network of a family that files are detected by."""
    unet = UNetConfig.from_dict(
        {name: value for name, value in TINY.items() if "conditioning" not in name}
        | {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    )
    family = replace(read_family("sd1"), unet=unet, name="Tiny Diffusion")
    monkeypatch.setattr(loading, "FAMILIES", {12: "tiny", 768: "sd1"})
    monkeypatch.setattr(
        loading, "read_family", lambda name: family if name == "tiny" else read_family(name)
    )
    network = ControlNet(ControlNetConfig.like(unet, conditioning_embedding_out_channels=(4, 8, 8)))
    return randomize(network, 5), unet


@pytest.mark.parametrize("form", ["diffusers", "original", "bare", "whole", "pth"])
def test_files_of_every_form(tiny: Any, tmp_path: Path, form: str) -> None:
    network, unet = tiny
    tensors = network.state_dict()
    prefix = "" if form == "bare" else CONTROL
    if form != "diffusers":
        tensors = write_original(tensors, prefix, controlnet_names(network.config))
    if form == "whole":  # a training checkpoint with its base
        tensors |= {f"{UNET}input_blocks.0.0.weight": torch.zeros(16, 4, 3, 3)}
        tensors |= {"first_stage_model.decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}
    path = tmp_path / f"net.{'pth' if form == 'pth' else 'safetensors'}"
    if form == "pth":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    loaded = load_controlnet(path, unet, None, torch.device("cpu"))
    assert loaded.config == network.config
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def refused(path: Path, unet: UNetConfig) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_controlnet(path, unet, None, torch.device("cpu"))
    return str(caught.value)


KINDS = {
    "difference": ("control_model.input_hint_block.0.weight", "of differences to a U-Net; only"),
    "lora_controlnet": ("controlnet_cond_embedding.conv_in.weight", "is a Control-LoRA, not"),
    "lllite_unet_input_blocks_4_1.down.0.weight": ("x", "is a ControlNet-LLLite, not"),
    "controlnet_blocks.0.weight": ("x", "is a ControlNet of another model, not"),
    "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (
        "controlnet_cond_embedding.conv_in.weight",
        "is a SparseCtrl; only",
    ),
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
        "is a LoRA, not a ControlNet; give it as --lora FILE",
    ),
    f"{UNET}input_blocks.0.0.weight": ("x", "is a model, not a ControlNet; give it as the model"),
    "clip_l": ("clip_g", "is a textual inversion, not a ControlNet; give it as --embedding"),
    "decoder.conv_in.weight": ("encoder.conv_in.weight", "a VAE, not .* give it as --vae FILE"),
    "y.weight": ("x.weight", "is not a ControlNet: it holds"),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_are_named(tmp_path: Path, name: str) -> None:
    other, message = KINDS[name]
    path = tmp_path / "some.safetensors"
    save_file({name: torch.zeros(4, 4), other: torch.zeros(4, 4)}, path)
    assert re.search(message, refused(path, UNetConfig()))


def test_another_family_is_named(tiny: Any, tmp_path: Path) -> None:
    network, unet = tiny
    path = tmp_path / "net.safetensors"
    save_file(network.state_dict(), path)
    message = refused(path, UNetConfig())
    assert "for Tiny Diffusion; this model is Stable Diffusion 1.x: give" in message
    other = refused(path, replace(unet, layers_per_block=2))
    assert "layers_per_block (1, 1); this model's U-Net has (2, 2)" in other


def test_control_lora(tiny: Any, tmp_path: Path) -> None:
    """W = W₀ + B A of the base's weight, whole tensors in its place, by Stability's names."""
    network, unet_config = tiny
    base = randomize(UNet(unet_config), 8)
    plain = {name: value.clone() for name, value in base.state_dict().items()}
    rename, want, tensors = controlnet_names(network.config), {}, {loading.MARK: torch.zeros(0)}
    for index, (name, value) in enumerate(network.state_dict().items()):
        place = rename(name).name
        want[name] = plain.get(name, value)
        if name not in plain or index % 5 == 0:
            tensors[place], want[name] = value, value
        if name.endswith(".weight") and name in plain and value.ndim > 1 and index % 3:
            up, down = torch.randn(value.shape[0], 2), torch.randn(2, *value.shape[1:])
            stem = place.removesuffix(".weight")
            tensors |= {f"{stem}.up": up.reshape(*up.shape, *[1] * (value.ndim - 2))}
            tensors |= {f"{stem}.down": down}
            want[name] = want[name] + torch.einsum("or,r...->o...", up, down)
    path = tmp_path / "control-lora.safetensors"
    save_file(tensors, path)
    found = load_controlnet(path, unet_config, None, torch.device("cpu"), base.state_dict)
    assert sum(name.endswith(".up") for name in tensors) > 5
    for name, value in found.state_dict().items():
        assert (value - want[name]).abs().max() <= 1e-6
    base.conv_in.weight.zero_()  # as a LoRA changes it: the copy stays
    assert torch.equal(found.conv_in.weight, want["conv_in.weight"])
    save_file(tensors | {"input_blocks.9.0.op.up": torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match=r"op\.up and 0 more tensors that fit no layer"):
        load_controlnet(path, unet_config, None, torch.device("cpu"), base.state_dict)


def test_broken_files(tiny: Any, tmp_path: Path) -> None:
    network, unet = tiny
    path = tmp_path / "net.safetensors"
    assert "does not exist; give a ControlNet's folder or file" in refused(path, unet)
    tensors = write_original(network.state_dict(), "", controlnet_names(network.config))
    save_file(tensors | {"input_blocks.9.0.extra": torch.zeros(2)}, path)
    assert "input_blocks.9.0.extra and 0 more tensors that no ControlNet" in refused(path, unet)
    del tensors["zero_convs.1.0.weight"]
    save_file(tensors, path)
    assert "lacks controlnet_down_blocks.1.weight" in refused(path, unet)
    folder = tmp_path / "union"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "SparseControlNetModel"}))
    assert "is of a SparseCtrl; only ControlNets of" in refused(folder, unet)
