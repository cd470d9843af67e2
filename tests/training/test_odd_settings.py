"""Values of every kind at every setting of training: they work, or are refused by our errors."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.errors import ArgumentError, LDMError
from ldm.training.config import MOST_BYTES, TrainConfig, read_config
from ldm.training.data import DataOptions
from ldm.training.recipes import build_recipe
from tests.fuzz.gate import limits
from tests.fuzz.readers.data import CONFIG, embeddings_beside, pictures, text_rows_beside

NUMBERS = [0, -1, 1.5, float("nan"), float("inf"), -float("inf"), 2**31, 2**63, 10**30, 10**400]
TEXTS = ["", "x", "\x00", "\x1b[2J", "a" * 5000, "../" * 40, "\ud800"]
LISTS = [[], [[]], [-1], ["a"], [None], [1e400], {}, {"a": {}}, {"a": 1}, (1, 2)]
OTHERS = [None, True, False, b"x", {1, 2}, 1j, datetime.date(2000, 1, 1)]
ODD: list[Any] = [*NUMBERS, *TEXTS, *LISTS, *OTHERS]

UNET = {
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "norm_num_groups": 4,
}
VAE = UNET | {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
CLIP = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
PHASE = {"until": 1.0, "size": 8, "batch_size": 2}
RECIPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pixel": ("PixelOptions", UNET, {"data": {"size": 8}, "scheduler": {"num_train_timesteps": 9}}),
    "autoencoder": (
        "AutoencoderOptions",
        VAE,
        {"data": {"size": 8}, "phases": [PHASE], "kl_weight": 1e-6, "gradient_weight": 1.0},
    ),
    "text": ("TextOptions", CLIP, {"temperature": 0.1, "max_tokens": 20, "held_out": 1}),
}


def config(folder: Path, **changes: Any) -> TrainConfig:
    values = {
        **{"recipe": "pixel", "data": str(folder), "output": str(folder / "out")},
        **{"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "mixed_precision": "no"},
    }
    return TrainConfig(**(values | changes))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainConfig)])
def test_settings_of_a_run(tmp_path: Path, field: str) -> None:
    refused = 0
    for value in ODD:
        try:
            config(tmp_path, **{field: value})
        except LDMError as error:
            refused += 1
            assert field in str(error) and len(str(error)) < 700
    assert refused > 10


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(DataOptions)])
def test_settings_of_data(field: str) -> None:
    refused = 0
    for value in ODD:
        try:
            DataOptions.from_dict({field: value})
        except LDMError as error:
            refused += 1
            assert f"data.{field} is" in str(error)
    assert refused > 10


def changes() -> Iterator[tuple[str, str]]:
    """Each option of each recipe, and "model.…" and "phases.…" for what is in tables."""
    for name, (options, model, _) in RECIPES.items():
        module = importlib.import_module(f"ldm.training.recipes.{name}")
        for field in dataclasses.fields(getattr(module, options)):
            yield name, field.name
        for key in model if name != "text" else ():  # of which the tokenizer takes its time
            yield name, f"model.{key}"
    for key in PHASE:
        yield "autoencoder", f"phases.{key}"
    yield from (("pixel", "data.size"), ("pixel", "start"), ("text", "start"))


@pytest.mark.parametrize(("name", "key"), list(changes()))
def test_settings_of_recipes(tmp_path: Path, name: str, key: str) -> None:
    """Each recipe is built, and draws a batch."""
    if name == "text":
        text_rows_beside(tmp_path)
        embeddings_beside(tmp_path)
    else:
        pictures(tmp_path)
    _, model, options = RECIPES[name]
    table, _, last = key.rpartition(".")
    refused = 0
    for value in ODD:
        changed: dict[str, Any] = {"model": model, "options": options}
        if table == "model":
            changed["model"] = {**model, last: value}
        elif table == "phases":
            changed["options"] = {**options, "phases": [{**PHASE, last: value}]}
        elif table == "data":
            changed["options"] = {**options, "data": {last: value}}
        elif last == "start":
            changed["start"] = value
        else:
            changed["options"] = {**options, last: value}
        try:
            with warnings.catch_warnings(), limits(20, 1 << 30):
                warnings.simplefilter("ignore")
                recipe = build_recipe(config(tmp_path, recipe=name, **changed))
                recipe.batch(0, torch.Generator().manual_seed(0))
        except LDMError as error:
            refused += 1
            assert len(str(error)) < 6000
    assert refused > 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=1" + "0" * 400, "Exceeds|64 bits|integer"),
        ("steps=" + "9" * 5000, "limit|digits"),
        ("model.x=" + "[" * 5000, "nested deeper than 100"),
        ("model.x=1979-05-27", "a date or time, 1979-05-27"),
        ("steps=1\nseed=2", "several lines"),
        ("output=a\0b", "NUL"),
        ('output="a\\u0000b"', "NUL"),
        ("output=\udcff", "not valid Unicode"),
        (".".join("a" * 100) + "=1", "more than 16 tables"),
        ("model.x." + "a." * 500_000 + "b=1", "more than 16 tables"),
        ("=1", "not of the form key=value"),
        ("output=" + "a" * MOST_BYTES, "more than 1,048,576 characters"),
        ("options.data.classes=5", ""),
        ("9" * 5000 + "=1", "unknown setting"),
    ],
)
def test_overrides(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(CONFIG)
    if not message:
        found = read_config(path, [override])
        with pytest.raises(ArgumentError, match=r"data\.classes is 5; expected a list"):
            DataOptions.from_dict(found.options["data"])
        return
    with pytest.raises(ArgumentError, match=message):
        read_config(path, [override])


def test_a_config_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(CONFIG + b"#" * MOST_BYTES)
    with pytest.raises(ArgumentError, match=r"a\.toml cannot be read as TOML .*1,048,576 bytes"):
        read_config(path)
    with pytest.raises(ArgumentError, match="it is a device, not a file"):
        read_config("/dev/zero")
