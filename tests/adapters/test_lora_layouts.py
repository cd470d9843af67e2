"""LoRA files of full size, by names and shapes: each key has its module, none is left over."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.adapters.lora import Loras
from ldm.checkpoints.describe import describe_header
from ldm.checkpoints.family import read_family
from ldm.checkpoints.folder import empty
from ldm.checkpoints.header import Header, TensorInfo
from ldm.clip import CLIPTextEncoder
from ldm.errors import CheckpointError
from ldm.loading.single_file import names_of
from ldm.unet import UNet
from tests.helpers import lora_layouts
from tests.helpers.original_layouts import Shapes

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

FILE = Path("x.safetensors")
PEFT = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora.down.weight", ".lora.up.weight")
OLD = (".down.weight", ".up.weight")
NAMES = {
    "sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"
}  # fmt: skip


@cache
def full_size(family: str) -> Loras:
    """A model's modules without memory."""
    config = read_family(family)
    parts = {text.part: empty(CLIPTextEncoder, text.config) for text in config.texts}
    return Loras(parts | {"unet": empty(UNet, config.unet)}, names_of(config.unet))


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("family", "convolutions", "counts"),
    [
        ("sd1", False, {"unet": 192, "text_encoder": 72}),
        ("sd1", True, {"unet": 278, "text_encoder": 72}),
        ("sd2", False, {"unet": 192, "text_encoder": 138}),
        ("sd2", True, {"unet": 278, "text_encoder": 138}),
        ("sdxl", False, {"unet": 722, "text_encoder": 72, "text_encoder_2": 192}),
        ("sdxl", True, {"unet": 788, "text_encoder": 72, "text_encoder_2": 192}),
    ],
)
def test_kohya(family: str, convolutions: bool, counts: dict[str, int]) -> None:
    """The counts are those that sd-scripts prints, "create LoRA for U-Net: 192 modules."."""
    shapes = lora_layouts.kohya(family, convolutions)
    lora = full_size(family).match(FILE, on_meta(shapes), {})
    assert lora.applied == lora.total == len(shapes) == 3 * sum(counts.values())
    found = [part for part, _ in lora.updates]
    assert {part: found.count(part) for part in found} == counts
    stems = {
        factors.names["down"].removesuffix(".lora_down.weight"): path
        for (_, path), factors in lora.updates.items()
    }
    if family == "sdxl":  # diffusers' own table of blocks
        from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

        blocks = {stem: stem for stem in stems if "transformer_blocks" in stem}
        config = lora_layouts.diffusers_unet(family).config
        names = _maybe_map_sgm_blocks_to_diffusers(dict(blocks), config)
        assert len(names) == 700
        ways = {"input_blocks": "down_blocks", "output_blocks": "up_blocks"}
        ways["middle_block"] = "mid_block"
        stems = {
            re.sub("|".join(ways), lambda found: ways[found[0]], name): stems[stem]
            for name, stem in names.items()
        }
    for stem, path in stems.items():
        assert stem.endswith(f"_{path.replace('.', '_')}")


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("form", ["peft", "down and up", "processors"])
def test_diffusers(family: str, form: str) -> None:
    shapes = {
        "peft": lambda: lora_layouts.diffusers_names(family, PEFT),
        "down and up": lambda: lora_layouts.diffusers_names(family, DOWN_UP),
        "processors": lambda: lora_layouts.diffusers_names(
            family, OLD, lora_layouts.processor, with_texts=False
        ),
    }[form]()
    lora = full_size(family).match(FILE, on_meta(shapes), {})
    assert lora.applied == lora.total == len(shapes)
    blocks = {"sd1": 16, "sd2": 16, "sdxl": 70}[family]  # two attentions with four layers each
    assert sum(part == "unet" for part, _ in lora.updates) == 8 * blocks
    for (part, path), factors in lora.updates.items():
        name = factors.names["down"].replace(".processor.", ".").replace("to_out_lora", "to_out.0")
        assert name.replace("_lora.", ".").startswith(f"{part}.{path}.")


@pytest.mark.parity
@pytest.mark.parametrize("stem", ["to_{}_lora{}", "{}_proj.lora_linear_layer{}"])
def test_text_encoders_of_old_diffusers(stem: str) -> None:
    shapes = {
        f"text_encoder.text_model.encoder.layers.{i}.self_attn.{stem.format(kind, end)}": (
            (4, 768) if "down" in end else (768, 4)
        )
        for i in range(12)
        for kind in ("q", "k", "v", "out")
        for end in OLD
    }
    lora = full_size("sd1").match(FILE, on_meta(shapes), {})
    assert lora.applied == lora.total == 96
    assert ("text_encoder", "text_model.encoder.layers.11.self_attn.out_proj") in lora.updates


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_another_family_is_named(model: str, family: str, form: str) -> None:
    if model == family:
        return
    shapes = (
        lora_layouts.kohya(family)
        if form == "kohya"
        else lora_layouts.diffusers_names(family, PEFT)
    )
    with pytest.raises(CheckpointError) as error:
        full_size(model).match(FILE, on_meta(shapes), {})
    told = str(error.value)
    assert told.startswith(f"x.safetensors is a LoRA for {NAMES[family]} (")
    assert f"this model is {NAMES[model]} (" in told
    assert "\n" not in told


def info(shapes: Shapes) -> dict[str, str]:
    tensors = {name: TensorInfo("F16", shape) for name, shape in shapes.items()}
    return dict(describe_header(Header(tensors, {}), FILE))


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("sd1", "192 of the U-Net, 72 of the text encoder"),
        ("sd2", "192 of the U-Net, 138 of the text encoder"),
        ("sdxl", "722 of the U-Net, 72 of the text encoder, 192 of the text encoder 2"),
    ],
)
def test_info_tells_family_and_layers(family: str, layers: str) -> None:
    assert info(lora_layouts.kohya(family))["layers"] == layers
    for shapes in (
        lora_layouts.kohya(family),
        lora_layouts.diffusers_names(family, PEFT),
        lora_layouts.diffusers_names(family, OLD, lora_layouts.processor, with_texts=False),
    ):
        told = info(shapes)
        assert (told["kind"], told["for"], told["rank"]) == ("LoRA", NAMES[family], "4")
        count = sum(math.prod(shape) for shape in shapes.values())
        assert told["weights"] == f"{count / 1e6:.1f}M parameters, float16"
