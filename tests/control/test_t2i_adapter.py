"""The network: diffusers' numbers on the same random weights; files of every layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ldm.checkpoints.family import UNET, read_family
from ldm.checkpoints.folder import empty
from ldm.checkpoints.t2i_adapter import config_of, diffusers_names
from ldm.config import UNetConfig
from ldm.config.t2i_adapter import T2IAdapterConfig, unet_places
from ldm.control.t2i_adapter import T2IAdapter
from ldm.errors import CheckpointError
from ldm.loading.t2i_adapter import check_fits, load_t2i_adapter
from ldm.unet import Residuals, UNet
from tests.helpers.networks import difference, ours_like, randomize
from tests.helpers.t2i_adapters import ADAPTERS, LEVELS, WIDTHS

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.parity

NETWORKS: dict[str, dict[str, Any]] = ADAPTERS | {
    "one level": {"channels": [8], "downscale_factor": 4},
    "equal widths": {"channels": [8, 8, 8], "num_res_blocks": 1},
    "two levels of XL": {"channels": [8, 16], "adapter_type": "full_adapter_xl"},
    "light, grey": {"channels": [8, 16], "adapter_type": "light_adapter", "in_channels": 1},
}


def networks(name: str) -> tuple[T2IAdapter, Any]:
    theirs = randomize(diffusers.T2IAdapter(**NETWORKS[name]), 3)
    return ours_like(theirs, T2IAdapter, T2IAdapterConfig.from_dict(dict(theirs.config))), theirs


@pytest.mark.parametrize("cells", [(5, 9), (4, 8), (1, 1)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_numbers_are_diffusers(name: str, cells: tuple[int, int]) -> None:
    """The largest difference is 1e-5, of features of about unit size; odd sizes, too."""
    ours, theirs = networks(name)
    factor, channels = ours.config.downscale_factor, ours.config.in_channels
    picture = torch.rand(2, channels, *(factor * n for n in cells))
    got, want = ours(picture), theirs(picture)
    for mine, its in zip(got, want, strict=True):
        assert difference(mine, its) <= 1e-5
    places = [(y.shape[1], -(-factor * cells[0] // y.shape[2])) for y in got]
    if cells == (4, 8):
        assert tuple(places) == ours.config.places


def test_sides_that_do_not_divide_are_continued_at_the_edge() -> None:
    ours, theirs = networks("xl")
    picture = torch.rand(1, 3, 40, 72)
    for mine, its in zip(
        ours(picture), theirs(F.pad(picture, (0, 8, 0, 8), mode="replicate")), strict=True
    ):
        assert difference(mine, its) <= 1e-5


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("controlled", [False, True])
def test_the_unet_adds_features(family: str, count: int, controlled: bool) -> None:
    """At each level and in the middle as diffusers, alone and with a ControlNet's residuals."""
    settings = WIDTHS | LEVELS[family] | {
        "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 12,
    }  # fmt: skip
    settings.pop("transformer_layers_per_block", None)
    theirs = randomize(diffusers.UNet2DConditionModel(**settings), 4)
    ours = ours_like(theirs, UNet, UNetConfig.from_dict(dict(theirs.config)))
    x, context, t = torch.randn(2, 4, 5, 9), torch.randn(2, 7, 12), torch.tensor([7.0, 800.0])
    sizes = {8: (5, 9), 16: (3, 5), 32: (2, 3)}
    places = unet_places(ours.config, 8)[:count]
    features = [torch.randn(2, width, *sizes[factor]) for width, factor in places]
    mine: dict[str, Any] = {}
    its: dict[str, Any] = {}
    if controlled:
        _, skips = ours.encode(x, ours.embed(t, None, None, None, None, dtype=x.dtype), context)
        skips, middle = [torch.randn_like(y) for y in skips], torch.randn(2, 64, 2, 3)
        mine = {"residuals": Residuals(skips, middle)}
        its = {
            "down_block_additional_residuals": skips,
            "mid_block_additional_residual": middle,
        }
    got = ours(x, t, context, features=features, **mine)
    given = [y.clone() for y in features]
    want = theirs(x, t, context, down_intrablock_additional_residuals=given, **its).sample
    assert difference(got, want) <= 1e-5
    assert difference(got, ours(x, t, context, **mine)) > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_configs_are_diffusers(name: str) -> None:
    ours, theirs = networks(name)
    again = diffusers.T2IAdapter.from_config(ours.config.to_dict())
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert T2IAdapterConfig.from_dict(ours.config.to_dict()) == ours.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter_type": "style_adapter"}, "adapter_type is 'style_adapter'; expected"),
        ({"channels": []}, "the number of channels is 0"),
        ({"channels": [0, 3]}, "channels holds 0; at least 1"),
        ({"channels": [2], "adapter_type": "light_adapter"}, "channels holds 2; at least 4"),
        ({"channels": [8] * 9}, "the number of channels is 9"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"num_res_blocks": 10_000}, "num_res_blocks is 10000"),
        ({"downscale_factor": 0}, "downscale_factor is 0"),
        ({"channels": 3}, "channels is 3"),
        ({"_class_name": "ControlNetModel"}, "_class_name"),
    ],
)
def test_configs_that_are_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        T2IAdapterConfig.from_dict(NETWORKS["full"] | changes)


# Files


def convolution(shapes: dict[str, tuple[int, ...]], name: str, out: int, into: int, k: int) -> None:
    shapes |= {f"{name}.weight": (out, into, k, k), f"{name}.bias": (out,)}


def published(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' files, by their code (``Adapter``, ``Adapter_light``)."""
    shapes: dict[str, tuple[int, ...]] = {}
    widths = [320, 640, 1280, 1280]
    if kind == "light":
        before = 192
        for i, width in enumerate(widths):
            convolution(shapes, f"body.{i}.in_conv", width // 4, before, 1)
            for j in range(4):
                for layer in ("block1", "block2"):
                    convolution(shapes, f"body.{i}.body.{j}.{layer}", width // 4, width // 4, 3)
            convolution(shapes, f"body.{i}.out_conv", width, width // 4, 1)
            before = width
        return shapes
    convolution(shapes, "conv_in", 320, {"sd1": 192, "grey": 64, "xl": 768}[kind], 3)
    before = 320
    for i, width in enumerate(widths):
        for j in range(2):
            if before != width:
                convolution(shapes, f"body.{2 * i + j}.in_conv", width, before, 1)
            convolution(shapes, f"body.{2 * i + j}.block1", width, width, 3)
            convolution(shapes, f"body.{2 * i + j}.block2", width, width, 1)
            before = width
    return shapes


DIFFUSERS: dict[str, dict[str, Any]] = {
    "sd1": {"adapter_type": "full_adapter"},
    "grey": {"in_channels": 1},
    "light": {
        "channels": [320, 640, 1280], "num_res_blocks": 4, "adapter_type": "light_adapter",
    },
    "xl": {"adapter_type": "full_adapter_xl", "downscale_factor": 16},
}  # fmt: skip
COUNTS = {"sd1": 77_369_280, "xl": 79_028_160}  # published as 77 M and 79 M


@pytest.mark.parametrize("prefix", ["", "adapter."])
@pytest.mark.parametrize("names", ["authors", "diffusers"])
@pytest.mark.parametrize("kind", DIFFUSERS)
def test_full_size_files(kind: str, names: str, prefix: str) -> None:
    """Nothing is missing and nothing left over; each fits its families and no other."""
    with torch.device("meta"):
        theirs = diffusers.T2IAdapter(**DIFFUSERS[kind])
    expected = {name: tuple(t.shape) for name, t in theirs.state_dict().items()}
    shapes = published(kind)
    if names == "diffusers":
        shapes = {name.removeprefix("adapter."): shape for name, shape in expected.items()}
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    renamed = diffusers_names(shapes)
    found = {renamed[name]: shape for name, shape in shapes.items()}
    assert found == expected
    config = config_of(Path("x"), found)
    module = empty(T2IAdapter, config)
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == expected
    assert config == T2IAdapterConfig.from_dict(dict(theirs.config))
    if kind in COUNTS:
        assert sum(p.numel() for p in module.parameters()) == COUNTS[kind]
    for family in ("sd1", "sd2", "sdxl"):
        unet = read_family(family).unet
        if (family == "sdxl") == (kind == "xl"):
            check_fits(Path("x"), config, unet, 8)
        else:
            its = "XL" if kind == "xl" else r"1\.x or Stable Diffusion 2\.x"
            with pytest.raises(CheckpointError, match=f"for Stable Diffusion {its}; this model is"):
                check_fits(Path("x"), config, unet, 8)


UNET_CONFIG = UNetConfig.from_dict(WIDTHS | LEVELS["sd"] | {"norm_num_groups": 8})
XL_CONFIG = UNetConfig.from_dict(
    {n: v for n, v in (WIDTHS | LEVELS["sdxl"]).items() if n != "transformer_layers_per_block"}
    | {"norm_num_groups": 8}
)


def authors_names(theirs: Any) -> dict[str, torch.Tensor]:
    """Rename by hand: two residual blocks of each level, numbered through; light ones inside."""
    blocks = theirs.config.num_res_blocks
    light = theirs.config.adapter_type == "light_adapter"
    found = {}
    for name, value in theirs.state_dict().items():
        name = name.removeprefix("adapter.")
        if light:
            name = name.replace(".resnets.", ".body.")
        elif match := re.match(r"body\.(\d+)\.resnets\.(\d+)\.(.+)", name):
            level, block, rest = match.groups()
            name = f"body.{blocks * int(level) + int(block)}.{rest}"
        elif match := re.match(r"body\.(\d+)\.(in_conv.+)", name):
            name = f"body.{blocks * int(match[1])}.{match[2]}"
        found[name] = value.contiguous()
    return found


@pytest.mark.parametrize("form", ["safetensors", "pth", "prefix", "diffusers", "bin", "beside"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_files_of_every_form(tmp_path: Path, kind: str, form: str) -> None:
    ours, theirs = networks(kind)
    tensors = authors_names(theirs)
    unet = XL_CONFIG if kind == "xl" else UNET_CONFIG
    path = tmp_path / "net.safetensors"
    if form == "pth":
        path = tmp_path / "net.pth"
        torch.save(tensors, path)
    elif form == "beside":
        theirs.save_pretrained(tmp_path)
        path = tmp_path / "diffusion_pytorch_model.safetensors"
    elif form == "bin":
        path = tmp_path
        theirs.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    else:
        if form == "prefix":
            tensors = {f"adapter.{name}": value for name, value in tensors.items()}
        save_file(theirs.state_dict() if form == "diffusers" else tensors, path)
    loaded = load_t2i_adapter(path, unet, 8, None, torch.device("cpu"))
    assert loaded.config == ours.config
    for name, value in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def refused(path: Path, unet: UNetConfig = UNET_CONFIG) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_t2i_adapter(path, unet, 8, None, torch.device("cpu"))
    return str(caught.value)


KINDS = {
    "style_embedding": ("transformer_layes.0.attn.in_proj_weight", "T2I-Adapter of styles, which"),
    "control_model.input_hint_block.0.weight": (
        "control_model.zero_convs.0.0.weight",
        "is a ControlNet, not a T2I-Adapter of these models; give it as --controlnet FILE",
    ),
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
        "is a LoRA, not a T2I-Adapter; give it as --lora FILE",
    ),
    "ip_adapter.1.to_k_ip.weight": ("image_proj.proj.weight", "is an IP-Adapter, not a T2I-Adapt"),
    f"{UNET}input_blocks.0.0.weight": ("x", "is a model, not a T2I-Adapter; give it as the model"),
    "clip_l": ("clip_g", "is a textual inversion, not a T2I-Adapter; give it as --embedding"),
    "decoder.conv_in.weight": ("encoder.conv_in.weight", "a VAE, not .* give it as --vae FILE"),
    "y.weight": ("x.weight", "is not a T2I-Adapter: it holds"),
    "body.0.block1.weight": ("body.0.block2.weight", "lacks its first layers; it is damaged"),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_are_named(tmp_path: Path, name: str) -> None:
    other, message = KINDS[name]
    path = tmp_path / "some.safetensors"
    save_file({name: torch.zeros(4, 4), other: torch.zeros(4, 4)}, path)
    assert re.search(message, refused(path))


def test_another_family_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(networks("full")[1].state_dict(), path)
    message = refused(path, XL_CONFIG)
    assert "for one with features of 32 channels at 1/8, 64 channels at 1/16" in message
    assert "this model is one with features of 32 channels at 1/16" in message
    assert "this model is Stable Diffusion 1.x or" in refused(path, UNetConfig())
    without = UNetConfig.from_dict(
        {"_class_name": "UNet2DModel", "down_block_types": ["DownBlock2D"] * 2,
         "up_block_types": ["UpBlock2D"] * 2, "block_out_channels": [32, 64]}
    )  # fmt: skip
    assert "this model reads no text" in refused(path, without)


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    assert "does not exist; give a T2I-Adapter's folder or file" in refused(path)
    _, theirs = networks("full")
    tensors = authors_names(theirs)
    save_file(tensors | {"body.0.skep.weight": torch.zeros(32, 32, 1, 1)}, path)
    assert "body.0.skep.weight (32, 32, 1, 1), which no published" in refused(path)
    save_file(tensors | {"body.0.block2.weight": torch.zeros(32, 32, 3, 3)}, path)
    assert "block2.weight (32, 32, 3, 3), which no published T2I-Adapter has" in refused(path)
    both = tensors | {"adapter.conv_in.weight": tensors["conv_in.weight"].clone()}
    save_file(both, path)
    assert "is damaged" in refused(path) or "names at once" in refused(path)
    del tensors["body.1.block1.bias"]
    save_file(tensors, path)
    assert "lacks adapter.body.0.resnets.1.block1.bias" in refused(path)
    tensors["conv_in.weight"] = torch.zeros(32, 12, 3, 3)
    save_file(tensors, path)
    assert "whose first layer reads 12 channels; expected one of 64, 192, 256, 768" in refused(path)
    folder = tmp_path / "other"
    folder.mkdir()
    for name, message in (
        ("ControlNetModel", "is a ControlNet, not a T2I-Adapter; give it as --controlnet FOLDER"),
        ("MotionAdapter", "is of a MotionAdapter; only T2I-Adapters"),
    ):
        (folder / "config.json").write_text(json.dumps({"_class_name": name}))
        assert message in refused(folder)
    (folder / "model_index.json").write_text("{}")
    assert "is a model without a T2I-Adapter" in refused(folder)
