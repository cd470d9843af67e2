"""Files of any name are told by their first bytes, and what is no weight file is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoints.describe import describe
from ldm.checkpoints.formats import find_format
from ldm.checkpoints.tensors import read_checkpoint
from ldm.errors import CheckpointError

TENSORS = {f"x.{i}": torch.ones(i + 1) for i in range(4)}


@pytest.mark.parametrize(
    "name", ["x.safetensors", "x.sft", "x.SFT", "x.ckpt", "x.pt", "x.bin", "x", "x.gguf"]
)
@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_either_format_under_any_name(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    tensors = read_checkpoint(path).tensors
    assert {key: value.tolist() for key, value in tensors.items()} == {
        key: value.tolist() for key, value in TENSORS.items()
    }
    named = dict(describe(path)).get("format", "")
    usual = {".safetensors": "safetensors", ".sft": "safetensors", ".gguf": "GGUF"}
    want = "safetensors" if kind == "safetensors" else "pickle"
    misnamed = usual.get(path.suffix.lower(), "pickle") != want
    assert named == (f"{want}, in spite of its name" if misnamed else "")


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path, length: int) -> None:
    """The first bytes of its length are those of a pickle, or nearly those of a zip file."""
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, {"fill": ""})
    short = int.from_bytes(path.read_bytes()[:8], "little")
    save_file(TENSORS, path, {"fill": "x" * (length - short)})
    assert int.from_bytes(path.read_bytes()[:8], "little") == length
    assert find_format(path) == "safetensors"
    assert read_checkpoint(path).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n  <html>", "a web page"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        (b"\x89HDF\r\n", "a file of Keras"),
        (b"7z\xbc\xaf\x27\x1c", "an archive"),
    ],
)
@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_what_is_no_weight_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (describe, read_checkpoint):
        with pytest.raises(CheckpointError, match=f"{name} is {message}"):
            read(path)
