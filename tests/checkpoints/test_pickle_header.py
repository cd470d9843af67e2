"""Pickles described without PyTorch: what PyTorch reads of them, and harm in bounded time."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import random
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoints.header import TensorInfo
from ldm.checkpoints.pickle_content import MOST_BYTES, read_contents
from ldm.checkpoints.pickle_header import read_pickle_header
from ldm.checkpoints.pickle_opcodes import MOST_OPCODES, OPCODES
from ldm.errors import CheckpointError
from tests.helpers.timing import info_seconds

E4M3 = torch.float8_e4m3fn
DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
    torch.int64: "I64", torch.int8: "I8", torch.bool: "BOOL", E4M3: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.uint16: "U16",
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "zip": {},
    "before 1.6": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
}


def tensors() -> dict[str, torch.Tensor]:
    whole = torch.zeros(4, 6)
    found = {f"{kind}.weight": torch.zeros(2, 3).to(kind) for kind in DTYPES}
    return found | {
        "view": whole[1:3, 2:5], "turned": whole.T, "scalar": torch.ones(()),
        "parameter": torch.nn.Parameter(torch.zeros(5)), "empty": torch.zeros(0, 7),
    }  # fmt: skip


def infos(content: dict[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {k: TensorInfo(DTYPES[v.dtype], tuple(v.shape)) for k, v in content.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nested", [True, False])
def test_names_shapes_and_dtypes(tmp_path: Path, nested: bool, form: str) -> None:
    content, path = OrderedDict(tensors()), tmp_path / "x.ckpt"
    trained = {
        "state_dict": content, "global_step": 875000, "epoch": 1.5, "big": 2**80, "path": b"x",
        "optimizer_states": [{"state": {0: {"step": torch.ones(3)}}, "groups": ({"lr": 1e-4},)}],
        "callbacks": {torch.nn.Parameter: None},
    }  # fmt: skip
    torch.save(trained if nested else content, path, **FORMS[form])
    header, step = read_pickle_header(path)
    assert header.tensors == infos(content)
    assert step == (875000 if nested else None)


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_and_bare_lists(tmp_path: Path, form: str) -> None:
    path, word = tmp_path / "x.pt", torch.nn.Parameter(torch.zeros(3, 768))
    for stored in ({"*": word}, torch.nn.ParameterDict({"*": word})):
        torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": stored,
                    "name": "cat", "step": 1}, path, **FORMS[form])  # fmt: skip
        assert read_pickle_header(path)[0].tensors == {"*": TensorInfo("F32", (3, 768))}
    torch.save([torch.zeros(320, 4), torch.zeros(4, 320)], path, **FORMS[form])
    assert read_pickle_header(path)[0].tensors == {
        "unet:0:up": TensorInfo("F32", (320, 4)),
        "unet:0:down": TensorInfo("F32", (4, 320)),
    }


def test_pickles_of_python_2(tmp_path: Path) -> None:
    """Those of the first checkpoints of PyTorch are of protocol 0 to 2, some in text."""
    for protocol in range(6):
        value = {"a": [1, -5, 2**70, True, None, 1.5, "é\\n", (1, 2, 3), {3: {4}}, b"x"]}
        data = pickle.dumps(value, protocol)
        assert {op.code for op, *_ in pickletools.genops(data)} <= {
            *map(chr, OPCODES), "."
        }  # fmt: skip
        path = tmp_path / "x.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
        found: Any = read_contents(path).value
        assert found["a"][:6] == value["a"][:6]
        assert found["a"][7] == (1, 2, 3)


def test_it_needs_no_torch_and_is_quick(tmp_path: Path) -> None:
    """A whole training checkpoint; the interpreter's start is in it."""
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {f"layer.{i}.weight": torch.zeros(1) for i in range(3000)}}, path)
    assert info_seconds(path) < 0.6


class Code:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class Other:
    """A class of somebody's."""


@pytest.mark.parametrize("form", FORMS)
def test_code_is_named_and_never_run(tmp_path: Path, form: str) -> None:
    path, proof = tmp_path / "x.ckpt", tmp_path / "it ran"
    torch.save({"a": torch.zeros(1), "code": Code(proof)}, path, **FORMS[form])
    with pytest.raises(CheckpointError, match=r"would run posix\.mkdir when loaded, so it is ref"):
        read_pickle_header(path)
    assert not proof.exists()
    torch.save({"a": torch.zeros(1), "other": Other()}, path, **FORMS[form])
    with pytest.raises(CheckpointError, match=r"would run .*Other when loaded.*: ldm-convert"):
        read_pickle_header(path)


def stored(path: Path, data: bytes, extra: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", extra)
    return path


def tensor_of(shape: tuple[int, ...], count: int) -> bytes:
    """A pickle of one tensor, whose storage claims ``count`` values."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2, 3)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        data = archive.read("archive/data.pkl")
    wide = pickle.dumps(shape, 2)[2:-1]
    changed = data.replace(b"K\x02K\x03\x86q\x08", wide.replace(b"q\x00", b"") + b"q\x08")
    changed = changed.replace(b"K\x06tq\x07", pickle.dumps(count, 2)[2:-1] + b"tq\x07")
    assert changed != data
    return changed


def fillers(count: int) -> bytes:
    return b"\x80\x02" + b"N0" * count + b"}."


BAD = {
    "few values": (tensor_of((2, 3), 5), "does not hold a plain mapping"),
    "huge shape": (tensor_of((2**40, 2**40), 6), "does not hold a plain mapping"),
    "huge storage": (tensor_of((2, 3), 2**50), "its tensors take 4,503,599"),
    "negative": (tensor_of((2, 3), -6), "a storage of -6 values"),
    "unfinished": (b"\x80\x02}", "damaged at byte"),
    "memo": (b"\x80\x02}r\xff\xff\xff\x7fj\xfe\xff\xff\x7f.", "damaged at byte"),
    "text": (b"\x80\x02X\xff\xff\xff\xff.", "claims 4,294,967,295 bytes"),
    "bytes": (b"\x80\x05\x8e" + struct.pack("<Q", 2**62) + b".", "claims 4,611,686"),
    "digits": (b"\x80\x02L" + b"9" * 100_000 + b"L\n.", "damaged at byte"),
    "opcodes": (fillers(MOST_OPCODES), "more than 2,000,000 opcodes"),
    "unknown opcode": (b"\x80\x02\xff.", "damaged at byte"),
    "extension": (b"\x80\x02\x82\x01.", "damaged at byte"),
    "nothing": (b"", "damaged at byte"),
    "list": (pickle.dumps([1, 2]), "does not hold a plain mapping"),
}
PAIRS = b"c" + b"collections\nOrderedDict\n" + b"q\x00]q\x01(" + b"K\x01K\x02\x86" * 1000 + b"e0"
BAD["quadratic"] = (
    b"\x80\x02" + PAIRS + b"h\x00h\x01\x85R0" * 20_000 + b".", "its dictionaries have more than",
)  # fmt: skip
# A key that would take 2**60 steps to hash, were it kept.
DEEP = b"\x80\x02}" + b"K\x01" + b"2\x86" * 60 + b"K\x01s."
BAD["deep key"] = (DEEP, "the key of a tensor is of the type NoneType")


@pytest.mark.parametrize("case", BAD)
def test_harm_in_bounded_time(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    path = stored(tmp_path / "x.ckpt", data, bytes(24))
    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        read_pickle_header(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - started < 30


def test_zip_files_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for names, message in (
        (["a/data.pkl", "a/constants.pkl"], "no weights of PyTorch"),
        (["a/version"], "no weights of PyTorch"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"}.")
        with pytest.raises(CheckpointError, match=message):
            read_pickle_header(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))
    with pytest.raises(CheckpointError, match="compressed members"):
        read_pickle_header(path)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, MOST_BYTES + 1, 0, 0)
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(MOST_BYTES + 100)
        file.seek(0, 2)
        file.write(end)
    with pytest.raises(CheckpointError, match="its list of members claims 64,000,001"):
        read_pickle_header(path)


@pytest.mark.parametrize("form", FORMS)
def test_mutated_pickles(tmp_path: Path, form: str) -> None:
    """A thousand harms of each form: an error of ours, or names with shapes."""
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": tensors(), "global_step": 3}, path, **FORMS[form])
    valid, inner = path.read_bytes(), b""
    if form != "before 1.6":
        with zipfile.ZipFile(path) as archive:
            inner = archive.read("x/data.pkl")
    rng, refused = random.Random(0), 0
    for _ in range(1000):
        content = bytearray(inner or valid)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(min(len(content), 3000))
            match rng.randrange(3):
                case 0:
                    content[place] = rng.randrange(256)
                case 1:
                    del content[place : place + rng.randint(1, 9)]
                case 2:
                    content[place:place] = rng.randbytes(rng.randint(1, 4))
        stored(path, bytes(content), bytes(1000)) if inner else path.write_bytes(content)
        try:
            header, _ = read_pickle_header(path)
            assert all(isinstance(info, TensorInfo) for info in header.tensors.values())
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 300 < refused <= 1000
