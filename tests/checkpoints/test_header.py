"""Broken, lying and hostile weight files: always an error of ours, at once."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ldm.checkpoints.header import TensorInfo, read_header
from ldm.checkpoints.tensors import read_checkpoint
from ldm.errors import CheckpointError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.ones(4, dtype=torch.float16),
    "c": torch.zeros((), dtype=torch.int64),
}


def written(path: Path, header: Any, values: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)
    return path


def entry(dtype: str, shape: list[int], *place: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(place)}


def test_a_header_is_read_without_the_values(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", {"title": "x"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"title": "x"}
    assert header.tensors["a"] == TensorInfo("F32", (2, 3))
    assert header.tensors["b"].count == 4
    assert header.tensors["c"] == TensorInfo("I64", ())


BROKEN: dict[str, tuple[Any, bytes, str]] = {
    "no JSON": (b"hello", b"", "truncated or not a .safetensors"),
    "no object": ([1], b"", "no JSON object"),
    "no tensor": ({"a": 1}, b"", "'a' is no tensor"),
    "dtype": ({"a": entry("F33", [1], 0, 4)}, bytes(4), "unknown dtype 'F33'"),
    "shape": ({"a": entry("F32", [-1], 0, 4)}, bytes(4), r"shape of 'a' is \[-1\]"),
    "bool": ({"a": entry("F32", [True], 0, 4)}, bytes(4), "shape of 'a'"),
    "huge": ({"a": entry("F32", [2**62], 0, 4)}, bytes(4), "bytes of its shape"),
    "short": ({"a": entry("F32", [2], 0, 4)}, bytes(4), "bytes of its shape"),
    "backwards": ({"a": entry("F32", [1], 4, 0)}, bytes(4), "bytes of its shape"),
    "overlap": ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, bytes(3), "begins"),
    "hole": ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 3, 5)}, bytes(5), "begins"),
    "beyond": ({"a": entry("U8", [9], 0, 9)}, bytes(3), "take 9 bytes, but 3 follow"),
    "more": ({"a": entry("U8", [2], 0, 2)}, bytes(3), "take 2 bytes, but 3 follow"),
    "twice": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        bytes(1),
        "a name twice",
    ),
    "deep": (b"[" * 100_000, b"", "truncated or not"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_headers_that_lie(tmp_path: Path, case: str) -> None:
    header, values, message = BROKEN[case]
    path = written(tmp_path / "x.safetensors", header, values)
    for read in (read_header, read_checkpoint):
        with pytest.raises(CheckpointError, match=message if read is read_header else "x.safe"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2**63), b"text " * 100])
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (read_header, read_checkpoint):
        with pytest.raises(CheckpointError, match="truncated or not a"):
            read(path)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("valid")
    save_file(TENSORS, folder / "x.safetensors", {"title": "x"})
    torch.save({"state_dict": TENSORS, "global_step": 3}, folder / "x.ckpt")
    torch.save(TENSORS, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(tensors: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "old.ckpt"])
@settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files(
    valid: dict[str, bytes], tmp_path: Path, name: str, data: st.DataObject
) -> None:
    """A thousand small harms to each: an error of ours, or all tensors of their shapes."""
    content = bytearray(valid[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(len(content) - 1, 0)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "zero"])):
            case "flip" if content:
                content[place] ^= data.draw(st.integers(1, 255))
            case "cut":
                del content[place:]
            case "insert":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=16))
            case "remove":
                del content[place : place + data.draw(st.integers(1, 64))]
            case "zero":
                content[place : place + 8] = bytes(len(content[place : place + 8]))
    path = tmp_path / f"broken-{name}"
    path.write_bytes(content)
    try:
        tensors = read_checkpoint(path).tensors
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        for tensor in tensors.values():
            tensor.sum()  # every value is there to read


def test_a_zip_bomb_is_no_checkpoint(tmp_path: Path) -> None:
    """Members of a .ckpt are stored; one that unpacks to more than the file has is refused."""
    torch.save(TENSORS, tmp_path / "x.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "x.ckpt") as source,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for item in source.infolist():
            content = source.read(item)
            bomb.writestr(item.filename, content if "data/" not in item.filename else bytes(10**8))
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(tmp_path / "bomb.ckpt")
