"""The names and shapes in PyTorch's pickles (.ckpt, .pt, .bin), without PyTorch.

Layout: ``torch/serialization.py``. Since PyTorch 1.6 a zip file with the pickle ``data.pkl`` and a
member of values for each storage; before, a number, a version and a description of the machine,
then the pickle, all pickles, and the values behind them.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ldm.checkpoints.formats import IP_ADAPTER
from ldm.checkpoints.header import DTYPE_BITS, Header, TensorInfo
from ldm.checkpoints.lora_first import keys_of_list
from ldm.checkpoints.pickle_opcodes import Call, Damaged, Global, Machine
from ldm.errors import CheckpointError

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the layout before 1.6
MOST_BYTES = 64_000_000  # of a pickle, and of a zip file's list of members
MOST_ITEMS = 10_000_000  # of dictionaries that calls make
MOST_AXES = 64  # PyTorch's own limit
ZIP_ERRORS = (zipfile.BadZipFile, struct.error, OverflowError)  # of damaged zip files
TAIL = 65_557 + 20 + 56  # bytes where a zip file's end is looked for: comment, both end records
# What training checkpoints name besides weights: records that no weight depends on.
RECORDS = ("pytorch_lightning.", "lightning.", "numpy.", "omegaconf.")
ALLOWED = re.compile(
    r"torch\.|collections\.(OrderedDict|defaultdict|Counter)$|_codecs\.encode$|(builtins|__builtin__)"
    r"\.(set|frozenset|bytearray|complex|int|float|str|list|dict|tuple|bool|bytes|object|slice)$"
)
NAME = re.compile(r"[\w.<>]{1,200}")  # is shown to users
BLOCKED = ("os.", "posix.", "nt.", "sys.")  # PyTorch reads nothing of a file that names these
HINT = ", or take a model's weights out of it, which runs nothing of it: ldm-convert {} {}"
REBUILD = {f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3")}
WRAPPERS = {f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state")}
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
PARAMETERS = "torch.nn.modules.container.ParameterDict"
DTYPES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64",
    "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64",
}  # fmt: skip
TORCH_DTYPES = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint16": "U16", "uint32": "U32",
    "uint64": "U64",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """The values that tensors are views of."""

    dtype: str
    count: int  # values, or bytes of an untyped one


def refusal(path: Path, name: str, again: bool = False) -> CheckpointError:
    """Make the error for a pickle that names what must not run.

    again: whether it was tried to read the weights alone.
    """
    misnamed = path.suffix == ".safetensors"
    safe = path.with_suffix(".new.safetensors" if misnamed else ".safetensors")
    hint = "" if again or name.startswith(BLOCKED) else HINT.format(path, safe)
    return CheckpointError(
        f"{path} is a pickle that would run {name} when loaded, so it is refused; "
        f"get its .safetensors version{hint}"
    )


def read_pickle_content(path: Path) -> object:
    """Return what a pickle holds, with a TensorInfo in the place of each tensor.

    Raises CheckpointError for one that is damaged, no pickle of tensors, or would run code.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            zipped = zipfile.is_zipfile(file)
            return _zip(path, file, size) if zipped else _legacy(path, file, size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, LookupError, EOFError, *ZIP_ERRORS) as error:
        raise CheckpointError(
            f"{path} is truncated or not a weight file ({error}); get it again"
        ) from None


def parameters_of(content: object) -> object:
    """Return the parameters of a ``ParameterDict``; anything else as it is."""
    if isinstance(content, Call) and content.function == Global(PARAMETERS):
        state = content.state
        return state.get("_parameters") if isinstance(state, dict) else None
    return content


class _Reader:
    """What the names and calls of one file mean."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.items = 0
        self.storages: dict[object, int] = {}  # bytes by their keys

    def machine(self, data: bytes | mmap.mmap) -> Machine:
        return Machine(data, self.named, self.rebuild, self.load)

    def named(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise Damaged("its pickle names a class that no program has")
        if not (ALLOWED.match(name) or name.startswith(RECORDS)):
            raise refusal(self.path, name)

    def load(self, key: object, _: object) -> object:
        if isinstance(key, tuple) and len(key) > 1 and key[0] == "module":
            return key[1]  # a class, with its source, before 1.6
        if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage":
            raise Damaged("it has an unknown kind of storage")
        kind, name, count = key[1], key[2], key[4]
        word = kind.name.rpartition(".")[2].removesuffix("Storage")
        if not isinstance(count, int) or not 0 <= count < 2**60 or not isinstance(name, str):
            raise Damaged(f"it has a storage of {count!r} values")
        dtype = DTYPES.get(word, "U8" if word == "Untyped" else word.lower())
        self.storages[name] = count * DTYPE_BITS.get(dtype, 8) // 8
        return Storage(dtype, count)

    def rebuild(self, function: object, arguments: object) -> object:
        """Return a TensorInfo for a tensor, a dictionary for an ``OrderedDict``, else a Call."""
        name = function.name if isinstance(function, Global) else ""
        values: tuple[Any, ...] = arguments if isinstance(arguments, tuple) else ()
        if name in REBUILD:
            return _tensor(values) or Call(function, arguments)
        if name in WRAPPERS and values:
            return values[0]
        if name == SUBCLASS and len(values) > 2:
            return self.rebuild(values[0], values[2])
        if name == "collections.OrderedDict":
            pairs = values[0] if values and isinstance(values[0], list) else []
            self.items += len(pairs)
            if self.items > MOST_ITEMS:
                raise Damaged(f"its dictionaries have more than {MOST_ITEMS:,} items")
            named = (pair for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2)
            return {key: value for key, value in named if isinstance(key, str | int)}
        return Call(function, arguments)


def _tensor(values: tuple[Any, ...]) -> TensorInfo | None:
    """Return a tensor's dtype and shape; None if its storage does not have all of its values."""
    storage, shape = values[0], values[2]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or len(shape) > MOST_AXES:
        raise Damaged("it has a tensor without a shape")
    if not all(type(side) is int and 0 <= side < 2**60 for side in shape):
        raise Damaged(f"it has a tensor of the shape {shape[:4]}")
    dtype, bits = storage.dtype, DTYPE_BITS.get(storage.dtype, 8)
    if len(values) > 6 and isinstance(values[6], Global):  # _rebuild_tensor_v3
        word = values[6].name.rpartition(".")[2]
        dtype = TORCH_DTYPES.get(word, word)
    whole = math.prod(shape) * DTYPE_BITS.get(dtype, 8) <= storage.count * bits
    return TensorInfo(dtype, shape) if whole else None


def _zip(path: Path, file: BinaryIO, size: int) -> object:
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        names = [item for item in archive.infolist() if item.filename.endswith("data.pkl")]
        if not names or any(item.filename.endswith("constants.pkl") for item in archive.infolist()):
            raise Damaged("it is a zip file, but no weights of PyTorch")
        if any(item.compress_type for item in archive.infolist()):
            raise Damaged("it has compressed members, which PyTorch never writes")
        if names[0].file_size > min(MOST_BYTES, size):
            raise Damaged(f"its pickle claims {names[0].file_size:,} bytes")
        data = archive.read(names[0])
    reader = _Reader(path)
    content = reader.machine(data).run()
    _check_sizes(reader, size)
    return content


def _legacy(path: Path, file: BinaryIO, size: int) -> object:
    if not size:
        raise Damaged("it is empty")
    reader = _Reader(path)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        machine = reader.machine(data)
        if data[:1] != b"\x80" or machine.run() != MAGIC or machine.run() != VERSION:
            raise Damaged("it is damaged, or no pickle of tensors")
        machine.run()  # a description of the machine
        content = machine.run()
        machine.run()  # the keys of the storages
        _check_sizes(reader, size - machine.position)
    return content


def _check_sizes(reader: _Reader, room: int) -> None:
    claimed = sum(reader.storages.values())
    if claimed > room:
        raise Damaged(f"its tensors take {claimed:,} bytes, but there are {room:,}")


def _check_directory(file: BinaryIO, size: int) -> None:
    """Raise ValueError if a zip file's list of members, which is read at once, is too large."""
    file.seek(max(0, size - TAIL))
    tail = file.read(TAIL)
    for mark, form, place in ((b"PK\x05\x06", "<I", 12), (b"PK\x06\x06", "<Q", 40)):
        start = tail.rfind(mark) + place
        if tail.rfind(mark) >= 0 and start + 8 <= len(tail):
            (length,) = struct.unpack_from(form, tail, start)
            if length > MOST_BYTES and not (form == "<I" and length == 0xFFFFFFFF):
                raise Damaged(f"its list of members claims {length:,} bytes")


def read_pickle_header(path: Path) -> tuple[Header, int | None]:
    """Read the names and shapes in a pickle, and the training step of a checkpoint.

    Vectors of an embedding have their names, and factors of a bare list the first LoRAs' keys.
    Raises CheckpointError as ``read_pickle_content`` does, and for one that holds no tensors.
    """
    content = read_pickle_content(path)
    found = weights_of(content)
    if isinstance(content, list) and len(content) % 2 == 0:
        found = weights_of(dict(zip(keys_of_list(len(content)), content, strict=True)))
    elif isinstance(content, Mapping) and "string_to_param" in content:
        entries = parameters_of(content["string_to_param"])
        named = entries.items() if isinstance(entries, Mapping) else ()
        found = weights_of({str(name): value for name, value in named})
    elif isinstance(content, Mapping) and all(
        isinstance(content.get(table), Mapping) for table in IP_ADAPTER
    ):
        found = weights_of(
            {f"{t}.{name}": value for t in IP_ADAPTER for name, value in content[t].items()}
        )
    if found is None:
        raise CheckpointError(f"{path} does not hold a plain mapping of names to tensors")
    return Header(found[0], {}), found[1]


def weights_of(content: object) -> tuple[dict[str, TensorInfo], int | None] | None:
    """Return the tensors of a checkpoint and its training step; None for something else."""
    step = content.get("global_step") if isinstance(content, Mapping) else None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, TensorInfo) for key, value in content.items()
    ):
        return None
    return dict(content), step if isinstance(step, int) else None
