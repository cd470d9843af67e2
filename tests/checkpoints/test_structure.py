"""Distilled U-Nets: their layers, from the names in full-size files, alone and in diffusers'."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoints.describe import describe, describe_header
from ldm.checkpoints.distilled import original_names, structure_of, with_structure
from ldm.checkpoints.family import UNET, detect, read_family
from ldm.checkpoints.folder import empty
from ldm.checkpoints.header import Header, TensorInfo
from ldm.checkpoints.original import read_original, write_original
from ldm.checkpoints.structure import read_structure
from ldm.config import UNetConfig
from ldm.errors import CheckpointError
from ldm.loading.single_file import names_of
from ldm.unet import UNet
from tests.helpers.original_layouts import DISTILLED, Shapes, distilled, layout
from tests.helpers.sparse import write_sparse

XL: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
BK: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8, "layers_per_block": 1}
BK_TINY: dict[str, Any] = BK | {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    "mid_block_type": None,
}
# config.json as published, without what is the default: (config, parameters).
# BK-SDM's are in Nota-NetsPresso/BK-SDM, src/unet_config*, with the counts that segmind/distill-sd
# states for the same networks; the others' model cards round to 1.3B, 0.75B, 0.78B and 1.16B.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "SSD-1B": (
        XL
        | {
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [[1], [2, 2], [4, 4]],
            "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        },
        1_331_334_404,
    ),
    "Segmind Vega": (
        XL | {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1, 2]},
        745_225_604,
    ),
    "KOALA-700M": (
        XL
        | {
            "layers_per_block": 1,
            "mid_block_type": None,
            "transformer_layers_per_block": [0, 2, 5],
        },
        782_822_724,
    ),
    "KOALA-1B": (
        XL | {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]},
        1_161_184_324,
    ),
    "BK-SDM-Base": (BK, 579_384_964),
    "BK-SDM-Small": (BK | {"mid_block_type": None}, 482_346_884),
    "BK-SDM-Tiny": (BK_TINY, 323_384_964),
    "BK-SDM-v2-Tiny": (
        BK_TINY
        | {
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
        },
        326_825_604,
    ),
}


def prefixed(name: str) -> Shapes:
    return {f"{UNET}{key}": shape for key, shape in distilled(name).items()}


def rows(shapes: Shapes) -> dict[str, str]:
    infos = {name: TensorInfo("F16", shape) for name, shape in shapes.items()}
    return dict(describe_header(Header(infos, {}), Path("x.safetensors")))


@pytest.mark.parametrize("name", DISTILLED)
def test_a_full_size_file(name: str) -> None:
    """Nothing missing, nothing left over; and the same under diffusers' names."""
    shapes = prefixed(name)
    config = detect(shapes, {}, "file", prediction_type="epsilon").unet
    module = empty(UNet, config)
    expected = {key: value.shape for key, value in module.state_dict().items()}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = read_original(tensors, expected, UNET, names_of(config))
    assert {key: value.shape for key, value in found.items()} == expected
    assert not tensors
    written = write_original(module.state_dict(), UNET, names_of(config))
    assert {key: tuple(value.shape) for key, value in written.items()} == shapes
    ours = {key: tuple(shape) for key, shape in expected.items()}
    assert original_names(ours, ours) == distilled(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_config(name: str) -> None:
    values, parameters = PUBLISHED[name]
    config = UNetConfig.from_dict(json.loads(json.dumps(values)))
    state = empty(UNet, config).state_dict()
    assert sum(math.prod(value.shape) for value in state.values()) == parameters
    from_file = detect(prefixed(name), {}, "file", prediction_type="epsilon").unet
    assert structure_of(config) == structure_of(from_file)
    assert config.heads == from_file.heads
    mine = {key: tuple(value.shape) for key, value in empty(UNet, from_file).state_dict().items()}
    assert mine == {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_diffusers_has_the_same_names(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    from_file = detect(prefixed(name), {}, "file", prediction_type="epsilon").unet
    ours = {key: value.shape for key, value in empty(UNet, from_file).state_dict().items()}
    for values in (PUBLISHED[name][0], from_file.to_dict()):  # also the config that we write
        with torch.device("meta"):
            theirs = diffusers.UNet2DConditionModel.from_config(json.loads(json.dumps(values)))
        assert {key: value.shape for key, value in theirs.state_dict().items()} == ours


@pytest.mark.parametrize("name", DISTILLED)
def test_it_is_named(name: str, tmp_path: Path) -> None:
    family = read_family(str(DISTILLED[name]["base"])).name
    word = name.replace("-v2", "")
    kind = rows(prefixed(name))["kind"]
    assert kind.startswith(f"{family}, {word}")
    alone = rows(distilled(name))
    assert (alone["kind"], alone["for"]) == ("U-Net", kind)
    path = write_sparse(tmp_path / "x.safetensors", prefixed(name))
    assert ("kind", kind) in describe(path)
    if name in PUBLISHED:
        folder = tmp_path / "folder"
        (folder / "unet").mkdir(parents=True)
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        (folder / "unet" / "config.json").write_text(json.dumps(PUBLISHED[name][0]))
        assert ("family", kind) in describe(folder)


def test_other_layers_than_the_familys_are_counted() -> None:
    assert "transformer blocks" not in rows(layout("sdxl"))
    assert rows(prefixed("SSD-1B"))["transformer blocks"] == (
        "down 0 0 | 2 2 | 4 4; middle 0; up 4 4 10 | 2 1 1 | 0 0 0"
    )


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sdxl_refiner"])
def test_whole_families_keep_their_configs(name: str) -> None:
    family = read_family(name)
    structure = read_structure(layout(name), UNET)
    assert structure is not None
    assert with_structure(family.unet, structure) is family.unet


def test_a_structure_without_a_config() -> None:
    """The middle of diffusers' U-Nets is as deep as their last level."""
    shapes = prefixed("KOALA-1B")
    dropped = {k: v for k, v in shapes.items() if "middle_block.1.transformer_blocks.5." not in k}
    with pytest.raises(CheckpointError, match="file: its layers are of a structure that no conf"):
        detect(dropped, {}, "file")


def test_mutated_names_in_bounded_time() -> None:
    """One answer or one error for names with parts changed, dropped or repeated."""
    rng = random.Random(0)
    shapes = prefixed("BK-SDM-Tiny")
    started = time.monotonic()
    for _ in range(1000):
        changed = dict(shapes)
        for _ in range(rng.randint(1, 4)):
            key = rng.choice(list(changed))
            shape = changed.pop(key)
            change = rng.choice(["drop", "number", "shape", "block"])
            if change == "number":
                parts = key.split(".")
                i = rng.randrange(len(parts))
                parts[i] = rng.choice(["0", "7", "99999999999", "-1", "x", ""])
                changed[".".join(parts)] = shape
            elif change == "shape":
                changed[key] = rng.choice([(), (0,), (1, 2), (10**9, 3), (320, 640, 1)])
            elif change == "block":
                stem = ".".join(key.split(".")[:4])
                changed = {k: v for k, v in changed.items() if not k.startswith(stem)}
        try:
            detect(changed, {}, "file")
        except CheckpointError as error:
            assert "\n" not in str(error)
        rows(changed)
    assert time.monotonic() - started < 60
