"""Readers of weights alone: formats, and descriptions of files of all kinds."""

from __future__ import annotations

import contextlib
import io
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ldm.adapters.lora import read_lora
from ldm.checkpoints.deferred import dense
from ldm.checkpoints.header import read_header
from ldm.checkpoints.tensors import read_checkpoint, read_content, read_embedding
from ldm.cli.info import describe_any
from ldm.errors import LDMError
from ldm.loading.ip_adapter import read_adapter
from tests.fuzz import tiny
from tests.fuzz.reader import Reader

NAMES = (
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch Size",
    "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_meta_tensor_no_storage",
    "torch._utils _rebuild_qtensor", "torch._tensor _rebuild_from_type_v2", "torch Tensor",
    "torch.nn.parameter Parameter", "torch FloatStorage", "torch.storage UntypedStorage",
    "collections OrderedDict", "collections Counter", "builtins bytearray", "numpy dtype",
    "posix system", "torch.nn.modules.container ParameterDict", "_codecs encode", "torch float32",
)  # fmt: skip
TOKENS = [
    *(f"c{name.replace(' ', chr(10))}\n".encode() for name in NAMES),
    *(b"R", b"b", b"\x81", b"Q", b"tR", b"\x85R", b"\x86R", b"}b", b"s", b"u", b"e", b"a"),
    b"X\x01\x00\x00\x00a", b"X\xff\xff\xff\xff", b"B\xff\xff\xff\x7f", b"\x8a\xff",
    b"r\xff\xff\xff\x7f",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"q\x00", b"h\x00", b"h\x01",
]  # fmt: skip
STORAGES = 4  # of a pickle that is read alone
GGUF_TOKENS = [b"GGUF", b"\x08\x00\x00\x00", b"\x09\x00\x00\x00", b"\xff" * 8, b"\x00" * 8]


def safetensors_files() -> list[bytes]:
    """Return small files of several number formats."""
    tensors = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}
    scaled = {
        "n.a.weight": torch.ones(4, 4, dtype=torch.float8_e4m3fn), "n.scaled_fp8": torch.zeros(0),
        "n.a.scale_weight": torch.tensor(2.0), "n.b.weight": torch.ones(2, 2),
        "n.b.weight_scale": torch.ones(2, 1), "n.a.comfy_quant": torch.zeros(3, dtype=torch.uint8),
    }  # fmt: skip
    return [save(tensors), save(tensors, {"format": "pt", "note": "x"}), save(scaled)]


def contents() -> list[Any]:
    """What pickles hold: weights in all forms."""
    whole = torch.arange(24.0).reshape(4, 6)
    attributes = torch.ones(2)
    attributes.note = "x"  # type: ignore[attr-defined]
    state = {
        "a.weight": torch.nn.Parameter(whole[:, 2:]), "b.bias": whole.half()[0], "c": whole.T,
        "d": attributes,
    }  # fmt: skip
    return [
        {"state_dict": state, "global_step": 3, "epoch": 1.5, "hyper": {"lr": [1e-4, None]}},
        state,
        {"string_to_token": {"*": torch.tensor(265)}, "name": "cat",
         "string_to_param": torch.nn.ParameterDict({"*": torch.ones(2, tiny.WIDTH)})},
        [torch.ones(8, 2), torch.ones(2, 8)],
        {"image_proj": {"proj.weight": torch.ones(2, 2)},
         "ip_adapter": {"1.to_k_ip.weight": torch.ones(2, 2)}},
    ]  # fmt: skip


def pickled(value: Any, **form: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **form)
    return buffer.getvalue()


def zips() -> list[bytes]:
    return [pickled(value) for value in contents()]


def legacy() -> list[bytes]:
    return [pickled(value, _use_new_zipfile_serialization=False) for value in contents()[:4]]


def opcodes() -> list[bytes]:
    """The pickles in the zip files, and one of Python's own of protocol 4."""
    found = []
    for data in zips():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found.append(archive.read("archive/data.pkl"))
    return [*found, pickle.dumps({"a": [1, 2.5, None, "x" * 300, (1, {2: 3})]}, 4)]


def read_all(path: Path) -> None:
    """Read every value of a file as what it may be, and describe it."""
    for read in (read_embedding, read_lora, read_adapter, read_info):
        with contextlib.suppress(LDMError):
            read(path)
    with contextlib.suppress(LDMError):
        for value in read_checkpoint(path).tensors.values():
            assert isinstance(dense(value), Tensor)
    read_content(path)


def read_opcodes(path: Path) -> None:
    """Read a pickle with some values beside it."""
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.writestr("x/data.pkl", path.read_bytes())
        for i in range(STORAGES):
            archive.writestr(f"x/data/{i}", bytes(256))
    read_all(path.with_suffix(".zip"))


def gguf_files() -> list[bytes]:
    """Files of plain numbers and of blocks."""
    from ldm.checkpoints.gguf_writer import write_gguf
    from ldm.checkpoints.number_formats import Q8_0

    tensors = {"a.weight": torch.ones(4, 32), "b.bias": torch.ones(5), "c.weight": torch.ones(3, 5)}
    found = []
    for kind in (Q8_0, torch.float16):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.gguf")
            write_gguf(tensors, path, kind, "sd1", {"general.name": "x", "a": "b" * 40})
            found.append(path.read_bytes())
    return found


def described() -> list[bytes]:
    """Files of every kind."""
    tables: list[Mapping[str, Tensor]] = [
        tiny.single_file(), *tiny.controlnets().values(), tiny.lllite(),
        *tiny.t2i_adapters().values(), *tiny.ip_adapters().values(), tiny.image_encoder(),
        *tiny.loras().values(), tiny.taesd(), tiny.parts()["unet"], tiny.parts()["vae"],
        tiny.parts()["text_encoder"], {"emb_params": torch.ones(2, 8)}, {"clip_l": torch.ones(2, 8),
        "clip_g": torch.ones(2, 12)},
    ]  # fmt: skip
    notes = {
        "ss_base_model_version": "sd_v1",
        "modelspec.title": "x",
        "ss_tag_frequency": '{"a":{"b":1}}',
    }
    return [save({k: v.contiguous()[..., :4].to(torch.float8_e5m2).contiguous()
                  if v.numel() > 256 else v for k, v in table.items()}, notes)
            for table in tables]  # fmt: skip


def read_info(path: Path) -> None:
    """Describe a file as ``ldm info`` does, and write its rows."""
    with tiny.known():
        rows = describe_any(path)
    text = "".join(f"{name}  {value}\n" for name, value in rows)
    assert len(text.encode(errors="replace")) < 20_000 + 4 * len(str(path))


CHECKPOINTS = [
    Reader("safetensors header", safetensors_files, read_header, "case.safetensors"),
    Reader("safetensors", safetensors_files, read_all, "case.safetensors"),
    Reader("pickle in a zip", zips, read_all, "case.ckpt", TOKENS),
    Reader("pickle before 1.6", legacy, read_all, "case.pt", TOKENS),
    Reader("opcodes of a pickle", opcodes, read_opcodes, "case.pkl", TOKENS),
    Reader("GGUF", gguf_files, read_all, "case.gguf", GGUF_TOKENS),
    Reader("info of weights", described, read_info, "case.safetensors"),
]
