"""Scaled float8 weights in ComfyUI's two spellings, and files in which scales do not fit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.deferred import Deferred, dense
from ldm.checkpoints.tensors import read_checkpoint, read_tensors
from ldm.errors import CheckpointError

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
NEW = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
Tensors = dict[str, Tensor]


def example(dtype: torch.dtype = E4M3, scale: Tensor | None = None) -> Tensors:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {
        "net.scaled_fp8": torch.zeros(2, dtype=dtype),
        "net.a.weight": weight,
        "net.a.scale_weight": torch.tensor(0.3) if scale is None else scale,
        "net.a.scale_input": torch.tensor(1.0),
        "net.a.bias": torch.ones(4, dtype=torch.float16),
        "net.conv.weight": torch.ones(2, 2, 3, 3, dtype=dtype),  # is not scaled
        "net.word_embedding.weight": torch.ones(2, 2, dtype=dtype),
        "vae.b.weight": torch.ones(2, 2, dtype=dtype),  # of another network
    }


def renamed(tensors: Tensors) -> Tensors:
    """As it is written since the end of 2025."""
    found = {}
    for key, value in tensors.items():
        stem, _, end = key.rpartition(".")
        found[f"{stem}.{NEW.get(end, end)}"] = value
    del found["net.scaled_fp8"]
    text = b'{"format": "float8_e4m3fn"}'
    return found | {"net.a.comfy_quant": torch.tensor(list(text), dtype=torch.uint8)}


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
@pytest.mark.parametrize("change", [dict, renamed])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4, 1)])
def test_scales_are_applied(
    tmp_path: Path, change: Callable, dtype: torch.dtype, shape: tuple[int, ...], form: str
) -> None:
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.1
    tensors, path = change(example(dtype, scale)), tmp_path / f"x.{form}"
    save_file(tensors, path) if form == "safetensors" else torch.save(tensors, path)
    found = read_checkpoint(path).tensors
    assert set(found) == {
        *("net.a.weight", "net.a.bias", "net.conv.weight", "net.word_embedding.weight"),
        "vae.b.weight",
    }
    assert isinstance(found["net.a.weight"], Deferred)
    factor = scale if shape == (4, 1) else scale.reshape(())
    assert torch.equal(dense(found["net.a.weight"]), tensors["net.a.weight"].float() * factor)
    assert found["net.conv.weight"].dtype == dtype


def put(**changes: object) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        for key, value in changes.items():
            name = key.replace("__", ".")
            tensors.pop(name, None)
            if value is not None:
                tensors[name] = value  # type: ignore[assignment]

    return change


BAD = {
    "scale missing": (put(net__a__scale_weight=None), "by its net.scaled_fp8, but net.a.weight ha"),
    "weight missing": (put(net__a__weight=None), "has net.a.scale_weight, but no net.a.weight"),
    "of blocks": (put(net__a__scale_weight=torch.ones(4, 2, 1)), "the shape (4, 2, 1) for a"),
    "of columns": (put(net__a__scale_weight=torch.ones(6)), "expected one value, or one a row"),
    "empty": (put(net__a__scale_weight=torch.ones(0)), "the shape (0,)"),
    "NaN": (put(net__a__scale_weight=torch.tensor(float("nan"))), "no finite number, but nan"),
    "integer": (put(net__a__scale_weight=torch.tensor(2)), "no finite number, but 2"),
    "twice": (put(net__a__weight_scale=torch.tensor(2.0)), "two scales of net.a.weight"),
    "int8": (put(net__a__weight=torch.ones(4, 6, dtype=torch.int8)), "in blocks of int8 with a"),
    "nvfp4": (put(net__a__weight=torch.ones(4, 3, dtype=torch.uint8)), "in blocks of uint8"),
    "named, not scaled": (
        put(net__conv__comfy_quant=torch.ones(3, dtype=torch.uint8)), "but net.conv.weight has no",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_scales_that_do_not_fit(tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    tensors, path = example(), tmp_path / "x.safetensors"
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_mutated_files(tmp_path: Path) -> None:
    rng, path, refused = random.Random(0), tmp_path / "x.safetensors", 0
    shapes = ((), (1,), (4,), (4, 1), (6,), (0,), (4, 6), (2, 3, 4), (1, 1, 1, 1))
    dtypes = (torch.float32, torch.float16, torch.int8, torch.bool, E4M3, E5M2, torch.uint8)
    ends = ("weight", "scale_weight", "weight_scale", "comfy_quant", "scaled_fp8", "input_scale")
    for _ in range(1500):
        tensors = example() if rng.random() < 0.5 else renamed(example())
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(list(tensors))
            match rng.randrange(3):
                case 0:
                    del tensors[name]
                case 1:
                    name = f"{name.rpartition('.')[0]}.{rng.choice(ends)}"
                    tensors[name] = torch.zeros(rng.choice(shapes)).to(rng.choice(dtypes))
                case 2:
                    tensors[name] = torch.zeros(rng.choice(shapes)).to(rng.choice(dtypes))
        save_file(tensors, path)
        try:
            for value in read_tensors(path).values():
                assert value.isfinite().all() if value.dtype != E4M3 else True
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 300 < refused < 1500
