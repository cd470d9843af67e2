"""Tensors of GGUF files: each block type as the package computes it, lazily, and errors."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.checkpoints import gguf_blocks
from ldm.checkpoints.deferred import Deferred, change, dense
from ldm.checkpoints.gguf_header import BLOCK_TYPES
from ldm.checkpoints.tensors import read_checkpoint, read_tensors
from ldm.errors import CheckpointError
from tests.helpers.gguf_files import FOLDED, Blocks, gguf, quantise, values, write

WRITABLE = [
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0"),
]
KNOWN = sorted(kind.name for kind in gguf.quants._type_traits)
UNKNOWN = ["Q8_1", "Q8_K"]  # of activations, which no file holds


def random_blocks(kind: str, rows: int, width: int) -> Blocks:
    _, count, size = next(entry for entry in BLOCK_TYPES.values() if entry[0] == kind)
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (rows, width // count * size), np.uint8), kind


def same(found: torch.Tensor, want: torch.Tensor) -> bool:
    return found.shape == want.shape and torch.equal(found.nan_to_num(), want.nan_to_num())


def test_every_type_of_the_package_is_tried() -> None:
    assert len(KNOWN) >= 22
    assert {name for name, *_ in BLOCK_TYPES.values()} >= set(KNOWN)


@pytest.mark.parametrize("kind", WRITABLE)
def test_types_that_the_package_writes(tmp_path: Path, kind: str) -> None:
    value = torch.randn(48, 256, generator=torch.Generator().manual_seed(0))
    blocks = quantise(value, kind)
    (found,) = read_tensors(write(tmp_path / "x.gguf", {"x": blocks})).values()
    assert same(found.float(), values(blocks))
    # TQ1_0 and TQ2_0 have three values: they are worse than the others by their nature.
    assert torch.allclose(found.float(), value, atol=4 if kind.startswith("TQ") else 0.4)
    kept = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    assert found.dtype == kept.get(kind, torch.float32)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the package's, of random scales
@pytest.mark.parametrize("chunk", [1, 700, gguf_blocks.CHUNK])
@pytest.mark.parametrize("kind", KNOWN)
def test_all_types_by_random_blocks(
    tmp_path: Path, kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """max |Δ| = 0 to the package, in whatever chunks; random scales may be NaN."""
    monkeypatch.setattr(gguf_blocks, "CHUNK", chunk)
    blocks = random_blocks(kind, 3, 512)
    (found,) = read_tensors(write(tmp_path / "x.gguf", {"x": blocks})).values()
    assert same(found.float(), values(blocks))


@pytest.mark.parametrize("kind", UNKNOWN)
def test_types_that_the_package_does_not_compute(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "x.gguf", {"x": random_blocks(kind, 2, 256)})
    with pytest.raises(CheckpointError, match=f"blocks of type {kind}, which the installed pack"):
        read_checkpoint(path)


def test_integers(tmp_path: Path) -> None:
    data = np.arange(-4, 4).reshape(2, 4)
    blocks = {
        kind: (data.astype(name), kind)
        for kind, name in (("I8", "int8"), ("I16", "int16"), ("I32", "int32"), ("I64", "int64"))
    }
    for value in read_tensors(write(tmp_path / "x.gguf", blocks)).values():
        assert value.tolist() == data.tolist()


def test_shapes_are_those_that_comfyui_folded(tmp_path: Path) -> None:
    value = torch.randn(32, 8, 3, 3)
    blocks = quantise(value.reshape(-1, 256), "Q4_0")
    path = write(tmp_path / "x.gguf", {"x.weight": blocks}, "sd1", {"x.weight": (32, 8, 3, 3)})
    (found,) = read_checkpoint(path).tensors.values()
    assert found.shape == (32, 8, 3, 3)
    assert same(dense(found), values(blocks).reshape(32, 8, 3, 3))
    for shape in ((32, 8, 3, 4), (-1,), (0,)):
        write(path, {"x.weight": blocks}, "sd1", {"x.weight": shape})
        with pytest.raises(CheckpointError, match=rf"its {FOLDED}x\.weight is '.*for 2,304"):
            read_checkpoint(path)


def test_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.gguf", {n: quantise(torch.full((4, 32), 127.0), "Q8_0") for n in "ab"}
    )
    tensors = read_checkpoint(path).tensors
    assert all(isinstance(value, Deferred) for value in tensors.values())
    turned = change(tensors["a"], lambda x: x.T)
    assert turned.shape == (32, 4)
    assert torch.equal(dense(turned), torch.full((32, 4), 127.0))
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    with pytest.raises(CheckpointError, match=r"x\.gguf ends inside of b; it changed while"):
        dense(tensors["b"])
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        dense(tensors["b"])


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain numbers need none."""
    path = write(tmp_path / "x.gguf", {"x": quantise(torch.ones(2, 32), "F16")})
    blocks = write(tmp_path / "y.gguf", {"x": quantise(torch.ones(2, 32), "Q5_1")})
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert read_tensors(path)["x"].dtype == torch.float16
    with pytest.raises(CheckpointError, match=r"type Q5_1, .*: pip install 'ldm\[gguf\]'"):
        read_checkpoint(blocks)


MEASURE = """
import resource, sys
from pathlib import Path
import numpy, torch, gguf.quants
from ldm.checkpoints.tensors import read_checkpoint
tensors = read_checkpoint(Path(sys.argv[1])).tensors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in list(tensors):
    assert tensors.pop(name).read().shape == (1024, 4096)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    """Sixteen of 16 MB in float32: a quarter of that, not all of it."""
    data = np.zeros((1024, 4096 // 32 * 34), np.uint8)
    path = write(tmp_path / "x.gguf", {f"x{i}": (data, "Q8_0") for i in range(16)})
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 80, run.stdout


def test_mutated_files(tmp_path: Path) -> None:
    """Two thousand harms: one error of ours, or tensors of the shapes that the header has."""
    kinds = ("Q8_0", "Q4_0", "F16")
    base = {f"{kind}.weight": quantise(torch.randn(4, 64), kind) for kind in kinds}
    folded = {"Q4_0.weight": (4, 8, 8)}
    valid = write(tmp_path / "x.gguf", base, "sd1", folded).read_bytes()
    rng, path, refused = random.Random(0), tmp_path / "y.gguf", 0
    started = time.monotonic()
    for _ in range(2000):
        content = bytearray(valid)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(450)
            match rng.randrange(3):
                case 0:
                    content[place] ^= 1 << rng.randrange(8)
                case 1:
                    del content[rng.randrange(len(content)) :]
                case 2:
                    content[place : place + 8] = rng.choice((0, 32, 2**40)).to_bytes(8, "little")
            if len(content) < 500:
                break
        path.write_bytes(content)
        try:
            for value in read_checkpoint(path).tensors.values():
                assert dense(value).shape == value.shape
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 500 < refused < 2000
    assert time.monotonic() - started < 60
