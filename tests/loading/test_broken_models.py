"""Damaged and hostile model folders and files: one line of our own, or a model that works.

Some thousands of mutations of small valid models, drawn by a fixed seed; what a header of a
.safetensors file may hold is fuzzed in test_header.py, a LoRA's tensors in test_lora.py.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.checkpoints.assets import asset_path
from ldm.errors import LDMError
from ldm.pipeline import Pipeline
from ldm.text.tokenizer import CLIPTokenizer

STRANGE: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 2**20, 2**31, 10**30, -0.5, 1e-30, 1e308, math.nan,
    math.inf, "", "x", "epsilon", "None", [], [0], [1, 2], [-3, "x"], [None], [[]], {}, {"x": 1},
]  # fmt: skip
SECONDS = 20  # a single load takes 0.1


@pytest.fixture
def limit() -> Iterator[Callable[[], None]]:
    """Call it before each try: one that hangs fails the test."""

    def alarm(*_: object) -> None:
        raise TimeoutError(f"still busy after {SECONDS} s")

    old = signal.signal(signal.SIGALRM, alarm)
    yield lambda: signal.alarm(SECONDS)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the vocabulary takes longer than all else."""
    words = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
    monkeypatch.setattr(CLIPTokenizer, "from_pretrained", lambda *_, **__: words)


def works_or_says_why(model: Path) -> str | None:
    """None where the model draws a finite picture, else the error's one line."""
    try:
        pipe = Pipeline.from_pretrained(model, device="cpu")
        out = pipe("a cat", seed=1, num_inference_steps=1, height=16, width=16, output_type="pt")
        assert out.images.isfinite().all()
    except LDMError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in a JSON object."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def mutate(values: Any, rng: random.Random) -> str:
    """Change one value of a JSON object, add one, or take one away; returns which."""
    *path, last = rng.choice(list(places(values)))
    inner = values
    for key in path:
        inner = inner[key]
    what = rng.choice(["change", "change", "change", "remove", "add"])
    if what == "change":
        inner[last] = rng.choice(STRANGE)
    elif what == "remove":
        del inner[last]
    else:
        values[f"new_{rng.randrange(9)}"] = rng.choice(STRANGE)
    return f"{what} {path} {last}"


CONFIGS = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
]


@pytest.mark.usefixtures("one_tokenizer")
@pytest.mark.parametrize("name", CONFIGS)
def test_mutated_configs(folder: Path, tmp_path: Path, limit: Callable, name: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    valid = (model / name).read_text()
    rng = random.Random(name)
    said = []
    for _ in range(100):
        values = json.loads(valid)
        change = mutate(values, rng)
        (model / name).write_text(json.dumps(values))
        limit()
        try:
            said.append(works_or_says_why(model))
        except Exception as error:
            raise AssertionError(f"{change}: {values}") from error
    assert any(said)


def test_mutated_tokenizer_configs(folder: Path, tmp_path: Path) -> None:
    words = tmp_path / "tokenizer"
    shutil.copytree(folder / "tokenizer", words)
    path = words / "tokenizer_config.json"
    valid, rng = path.read_text(), random.Random(0)
    for _ in range(30):
        values = json.loads(valid)
        change = mutate(values, rng)
        path.write_text(json.dumps(values))
        try:
            CLIPTokenizer.from_pretrained(words).encode("a cat")
        except LDMError as error:
            assert "\n" not in str(error), change


def shard(model: Path) -> Path:
    """Cut the U-Net's weights in two, with an index; returns that."""
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    names = sorted(tensors)
    places = {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        name = f"diffusion_pytorch_model-{i + 1:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, file.with_name(name))
        places |= dict.fromkeys(part, name)
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def remap(name: str) -> Callable[[Path], None]:
    """Let an index name another file for one tensor."""

    def change(index: Path) -> None:
        values = json.loads(index.read_text())
        values["weight_map"]["conv_in.bias"] = name
        index.write_text(json.dumps(values))

    return change


def half_missing(index: Path) -> None:
    file = index.with_name("diffusion_pytorch_model-00002-of-00002.safetensors")
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[::2]), file)


SHARDS = [
    (lambda index: None, None),
    (remap("../../secret.safetensors"), "outside its folder; it is not trusted"),
    (remap("/etc/passwd"), "outside its folder"),
    (remap(".."), "which is missing"),
    (remap(""), "outside its folder"),
    (remap("gone.safetensors"), "names 'gone.safetensors', which is missing"),
    (half_missing, r"and \d+ more tensors that its shards lack"),
    (lambda index: next(index.parent.glob("*1-of*")).unlink(), "which is missing"),
    (lambda index: index.write_text("{}"), "has no weight_map"),
    (lambda index: index.write_text('{"weight_map": [1]}'), "has no weight_map"),
]


@pytest.mark.parametrize(("change", "message"), SHARDS)
def test_shards(folder: Path, tmp_path: Path, change: Callable, message: str | None) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    (tmp_path / "secret.safetensors").write_bytes(b"")
    change(shard(model))
    said = works_or_says_why(model)
    assert (said is None) == (message is None)
    assert said is None or re.search(message, said)


def weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the tensors of a file."""

    def act(file: Path) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return act


FILES = [
    (lambda file: file.write_text("<html>Not found</html>" * 9), "is a web page, not a model"),
    (lambda file: file.write_text(""), "not a .safetensors file"),
    (lambda file: file.write_bytes(file.read_bytes()[:-4]), "truncated"),
    (lambda file: file.write_bytes(file.read_bytes() + b"1234"), "follow the header"),
    (
        weights(lambda tensors: tensors["conv_in.weight"].fill_(math.nan)),
        "conv_in.weight of the unet holds NaN or infinite weights",
    ),
    (
        weights(lambda tensors: tensors["mid_block.resnets.0.norm1.bias"].fill_(math.inf)),
        "norm1.bias of the unet holds NaN or infinite weights",
    ),
    (weights(lambda tensors: tensors.pop("conv_in.bias")), "lacks conv_in.bias"),
    (weights(lambda tensors: tensors.update(x=torch.zeros(1))), "has unknown x"),
]


@pytest.mark.parametrize(("change", "message"), FILES)
def test_weight_files(folder: Path, tmp_path: Path, change: Callable, message: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    change(model / "unet" / "diffusion_pytorch_model.safetensors")
    said = works_or_says_why(model)
    assert said
    assert re.search(message, said)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json"])
def test_no_permission(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    if os.geteuid():
        (model / name).chmod(0)
    else:  # root reads everything
        real = io.open

        def refuse(path: Any, *args: Any, **kwargs: Any) -> Any:
            if str(path) == str(model / name):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(io, "open", refuse)
    said = works_or_says_why(model)
    assert said
    assert "Permission denied" in said
    assert name in said
    assert "truncated" not in said


@pytest.mark.usefixtures("one_tokenizer")
def test_mutated_weights(folder: Path, tmp_path: Path, limit: Callable) -> None:
    """Names, shapes and kinds of the U-Net's tensors; the built module must be whole."""
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    valid = load_file(file)
    rng = random.Random(0)
    kinds = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.int64]
    for _ in range(120):
        tensors = dict(valid)
        name = rng.choice(list(tensors))
        value = tensors.pop(name)
        what = rng.randrange(6)
        if what == 1:
            tensors[name + rng.choice(["", "x", ".weight"])] = value
        elif what == 2:
            tensors[name] = value.flatten()
        elif what == 3:
            tensors[name] = value[..., :0].clone()
        elif what == 4:
            tensors[name] = torch.tensor(1.0)
        elif what == 5:
            tensors[name] = value.to(rng.choice(kinds))
        save_file(tensors, file)
        limit()
        said = works_or_says_why(model)
        if what in (0, 2, 3, 4) and tensors.get(name, value[:0]).shape != value.shape:
            assert said, (what, name)
