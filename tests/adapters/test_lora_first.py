"""The first LoRA files: numbered layers, in the order in which diffusers defines them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.adapters.lora import Loras
from ldm.errors import CheckpointError, LDMError
from ldm.loading.single_file import names_of
from ldm.pipeline import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("diffusers")

UNET = ["CrossAttention", "Attention", "GEGLU"]
# What a class is called since; its layers before 0.18 came as attn1, ff, attn2.
NOW = {"Attention", "GEGLU"}


def numbered(module: nn.Module, classes: set[str]) -> Iterator[tuple[str, Any]]:
    """The linear layers inside modules of the classes: cloneofsimo's rule."""
    for outer, parent in module.named_modules():
        if type(parent).__name__ in classes:
            for inner, layer in parent.named_modules():
                if isinstance(layer, nn.Linear):
                    yield f"{outer}.{inner}", layer


def old_order(paths: list[str]) -> list[str]:
    """Put the feed-forward layer of each block between its attentions."""
    blocks: dict[str, list[str]] = {}
    for path in paths:
        blocks.setdefault(path.partition("transformer_blocks.")[0], []).append(path)
    rank = {"attn1": 0, "ff": 1, "attn2": 2}
    found = []
    for block in blocks.values():
        keys = {
            path: rank[path.partition("transformer_blocks.0.")[2].split(".")[0]] for path in block
        }
        found += sorted(block, key=keys.__getitem__)
    return found


def first_format(theirs: Any, old: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors, and the layer of each."""
    rng = torch.Generator().manual_seed(0)
    layers = dict(theirs.unet.named_modules())
    paths = [path for path, _ in numbered(theirs.unet, NOW)]
    paths = old_order(paths) if old else paths
    texts = dict(theirs.text_encoder.named_modules())
    text_paths = [path for path, _ in numbered(theirs.text_encoder, {"CLIPAttention"})]
    tensors, places = {}, {}
    for part, all_layers, names in (("unet", layers, paths), ("text_encoder", texts, text_paths)):
        for i, path in enumerate(names):
            out, inner = all_layers[path].weight.shape
            tensors[f"{part}:{i}:up"] = torch.randn(out, 2, generator=rng) * 0.2
            tensors[f"{part}:{i}:down"] = torch.randn(2, inner, generator=rng) * 0.2
            places[f"{part}:{i}"] = path
    return tensors, places


def check(pipe: Pipeline, tensors: dict[str, Tensor], places: dict[str, str]) -> None:
    for key, path in places.items():
        part = key.split(":")[0]
        if part == "text_encoder" and not path.startswith("text_model."):
            path = f"text_model.{path}"
        if f"{key}:up" in tensors:
            module = (part, path)
            want = tensors[f"{key}:up"] @ tensors[f"{key}:down"]
            change = pipe.loras.layers[module].weight - pipe.loras.base[module]
            assert (change - want).abs().max() < 1e-6


@pytest.mark.parity
@pytest.mark.parametrize("old", [True, False])
def test_numbers_are_those_of_diffusers(models: Any, tmp_path: Path, old: bool) -> None:
    """Both orders that diffusers has had; its α is the rank."""
    ours, theirs = models("sd")
    tensors, places = first_format(theirs, old)
    metadata = {"unet": json.dumps(UNET), "text_encoder": '["CLIPAttention"]'}
    metadata |= {f"{key}:rank": "2" for key in places}
    word = torch.randn(32)
    save_file(tensors | {"<s1>": word}, tmp_path / "x.safetensors", metadata | {"<s1>": "<embed>"})
    lora = ours.load_lora_weights(tmp_path / "x.safetensors")
    try:
        assert lora.applied == lora.total == len(tensors) + 1
        check(ours, tensors, places)
        assert 49408 in ours.text_models[0].tokenizer.encode("a <s1>")
    finally:
        ours.unload_lora_weights()
    assert ours.text_models[0].tokenizer is ours.tokenizer


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_bare_lists(models: Any, tmp_path: Path, part: str) -> None:
    """A ``.pt`` file says nothing of its part: the shapes do."""
    ours, theirs = models("sd")
    tensors, places = first_format(theirs, True)
    mine = {key: value for key, value in tensors.items() if key.startswith(part)}
    torch.save([nn.Parameter(value) for value in mine.values()], tmp_path / "x.pt")
    lora = ours.load_lora_weights(tmp_path / "x.pt")
    try:
        assert lora.applied == lora.total == len(mine)
        assert {each for each, _ in lora.updates} == {part}
        check(ours, mine, {key: p for key, p in places.items() if key.startswith(part)})
    finally:
        ours.unload_lora_weights()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            '["Transformer2DModel"]',
            "its layers are inside 'Transformer2DModel', which is not known",
        ),
        ("[", "its metadata 'unet' is no list of classes"),
        ("3", "its metadata 'unet' is no list of classes"),
        ('["GEGLU"]', "numbered layers are not those of this model"),
    ],
)
def test_classes_that_are_not_known(
    models: Any, tmp_path: Path, classes: str, message: str
) -> None:
    ours, theirs = models("sd")
    save_file(first_format(theirs, True)[0], tmp_path / "x.safetensors", {"unet": classes})
    with pytest.raises(CheckpointError, match=message):
        ours.load_lora_weights(tmp_path / "x.safetensors")
    assert not ours.loras.loaded


def test_another_family(models: Any, tmp_path: Path) -> None:
    ours, _ = models("sdxl")
    _, theirs = models("sd")
    save_file(first_format(theirs, True)[0], tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="are not those of this model; it is for another"):
        ours.load_lora_weights(tmp_path / "x.safetensors")


def test_mutated_files_load_or_are_refused(models: Any, tmp_path: Path) -> None:
    ours, theirs = models("sd")
    loras = Loras(
        {"unet": ours.unet, "text_encoder": ours.text_encoder}, names_of(ours.unet.config)
    )
    valid, _ = first_format(theirs, True)
    rng = random.Random(0)
    outcomes = {True: 0, False: 0}
    for _ in range(300):
        tensors = dict(valid)
        for _ in range(rng.randrange(3)):
            name = rng.choice(sorted(tensors))
            value = tensors.pop(name)
            if rng.random() < 0.3:
                value = rng.choice((value.T, value[:1], value.flatten(), torch.zeros(())))
            part, number, end = (*name.split(":"), "0", "up")[:3]
            other = rng.choice(
                (name, f"{part}:999999:{end}", f"{part}:{number}:down", "x", "unet:x:up")
            )
            tensors[other] = value
        metadata = {"unet": rng.choice((json.dumps(UNET), "[]", "x" * 100))}
        try:
            lora = loras.match(tmp_path, tensors, metadata if rng.random() < 0.5 else {}, True)
        except LDMError as error:
            outcomes[False] += 1
            assert "\n" not in str(error)
        else:
            outcomes[True] += 1
            assert lora.applied <= lora.total
    assert min(outcomes.values()) > 30, outcomes
