"""Headers of GGUF files: what the gguf package writes is read, and lies are refused in time."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.checkpoints.describe import describe
from ldm.checkpoints.gguf_header import BLOCK_TYPES, read_gguf_header
from ldm.checkpoints.header import TensorInfo
from ldm.errors import CheckpointError
from ldm.pipeline import Pipeline

gguf = pytest.importorskip("gguf")
SHAPES = {"a.weight": (8, 256), "b.weight": (3, 2, 32), "c.bias": (5,)}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = gguf.GGUFWriter(path, "sd1")
    writer.add_name("my model")
    writer.add_array("words", ["one", "two", ""])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_uint64("many", 2**40)
    writer.add_bool("yes", True)
    for name, kind in (
        ("a.weight", gguf.GGMLQuantizationType.Q4_K),
        ("b.weight", gguf.GGMLQuantizationType.Q8_0),
        ("c.bias", gguf.GGMLQuantizationType.F16),
    ):
        shape = SHAPES[name]
        _, values, size = BLOCK_TYPES[int(kind)]
        block = np.zeros((*shape[:-1], shape[-1] // values * size), np.uint8)
        data = np.zeros(shape, np.float16) if values == 1 else block
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_block_types_are_those_of_the_package() -> None:
    theirs = {
        int(kind): (kind.name, *sizes) for kind, sizes in gguf.constants.GGML_QUANT_SIZES.items()
    }
    assert {number: BLOCK_TYPES.get(number) for number in theirs} == theirs


def test_a_header(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(valid)
    header = read_gguf_header(path)
    kinds = {"a.weight": "Q4_K", "b.weight": "Q8_0", "c.bias": "F16"}
    assert header.tensors == {n: TensorInfo(kinds[n], shape) for n, shape in SHAPES.items()}
    assert header.metadata == {
        "general.architecture": "sd1", "general.name": "my model", "many": str(2**40),
        "yes": "True", "numbers": "1,2,3",
    }  # fmt: skip
    found = dict(describe(path))
    assert found["format"] == "GGUF"
    assert found["weights"] == "0.0M parameters, Q4_K and Q8_0 and float16"
    assert found["title"] == "my model"
    with pytest.raises(CheckpointError, match="is not a Stable Diffusion checkpoint"):
        Pipeline.from_pretrained(path, device="cpu")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    form = f"<I{len(shape)}Q"
    return text(name) + struct.pack(form, len(shape), *shape) + struct.pack("<IQ", kind, offset)


def file(tensors: list[bytes], entries: list[bytes], /, room: int = 64, **change: int) -> bytes:
    counts = change.get("tensors", len(tensors)), change.get("entries", len(entries))
    start = b"GGUF" + struct.pack("<IQQ", change.get("version", 3), *counts)
    head = start + b"".join([*entries, *tensors])
    return head + bytes(-len(head) % 32 + room)


NESTED = struct.pack("<IQ", 9, 1) * 1000
LIES: dict[str, tuple[bytes, str]] = {
    "version": (file([], [], version=1), "its version is 1"),
    "tensors": (file([], [], tensors=2**60), "claims 1,152,921,504,606,846,976 tensors"),
    "entries": (file([], [], entries=2**63), "entries of metadata"),
    "few tensors": (file([], [], tensors=1000), "a name of 0 bytes"),
    "name": (file([struct.pack("<Q", 2**62)], []), "a name of 4,611,686"),
    "text": (file([], [entry("a", 8, struct.pack("<Q", 2**61))]), "claims 2,305,843"),
    "array": (file([], [entry("a", 9, struct.pack("<IQ", 8, 2**61))]), "an array of 2,305"),
    "numbers": (file([], [entry("a", 9, struct.pack("<IQ", 10, 2**61))]), "claims 18,446"),
    "nested": (file([], [entry("a", 9, NESTED)]), "arrays in more than"),
    "type": (file([], [entry("a", 77, b"")]), "the unknown type 77"),
    "twice": (file([], [entry("a", 0, b"1")] * 2), "'a' twice"),
    "axes": (file([text("a") + struct.pack("<I", 2**31)], []), "2,147,483,648 axes"),
    "block type": (file([tensor("a", (4,), 99)], []), "unknown block type 99"),
    "rows": (file([tensor("a", (33,), 8)], []), "rows of 33 values in blocks of 32"),
    "beyond": (file([tensor("a", (2**40,))], []), "ends at byte 4,398,046,511,104, but 64"),
    "huge": (file([tensor("a", (2**63,) * 4)], []), "ends at byte"),
    "offset": (file([tensor("a", (4,), 0, 2**62)], []), "ends at byte"),
    "overlap": (file([tensor("a", (8,)), tensor("b", (8,), 0, 0)], []), "after 32 bytes"),
    "unaligned": (file([tensor("a", (4,), 0, 3)], []), "begins at byte 3"),
    "same name": (file([tensor("a", (8,)), tensor("a", (8,), 0, 32)], []), "name twice"),
    "alignment": (
        file([], [entry("general.alignment", 4, struct.pack("<I", 0))]), "alignment is 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_headers_that_lie(tmp_path: Path, case: str) -> None:
    content, message = LIES[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="truncated or not a GGUF") as caught:
        read_gguf_header(path)
    assert message in str(caught.value)
    assert time.monotonic() - started < 1


def test_a_true_header_of_the_helper(tmp_path: Path) -> None:
    """The lies above are the only things wrong with their files."""
    (tmp_path / "x.gguf").write_bytes(
        file([tensor("a", (8,)), tensor("b", (4, 2), 1, 32)], [entry("n", 8, text("x"))])
    )
    header = read_gguf_header(tmp_path / "x.gguf")
    assert header.tensors == {"a": TensorInfo("F32", (8,)), "b": TensorInfo("F16", (2, 4))}


def test_millions_of_empty_words_are_read_in_bounded_time(tmp_path: Path) -> None:
    """A sparse file of a gigabyte that claims to be one array of words."""
    path = tmp_path / "x.gguf"
    path.write_bytes(file([], [entry("a", 9, struct.pack("<IQ", 8, 100_000_000))]))
    with path.open("ab") as out:
        out.truncate(1 << 30)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="an array of 100,000,000 values"):
        read_gguf_header(path)
    assert time.monotonic() - started < 10


def test_mutated_headers(valid: bytes, tmp_path: Path) -> None:
    """Three thousand harms: an error of ours, or a header whose tensors lie in the file."""
    rng = random.Random(0)
    path = tmp_path / "x.gguf"
    refused = 0
    for _ in range(3000):
        content: Any = bytearray(valid)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(min(len(content), 700))
            match rng.randrange(4):
                case 0:
                    content[place] ^= rng.randint(1, 255)
                case 1:
                    del content[place : place + rng.randint(1, 64)]
                case 2:
                    content[place : place + 8] = struct.pack("<Q", rng.choice([0, 2**32, 2**63]))
                case 3:
                    content[place:place] = rng.randbytes(rng.randint(1, 16))
        path.write_bytes(content)
        try:
            read_gguf_header(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 1000 < refused < 3000
