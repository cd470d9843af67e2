"""What a pickle of PyTorch's holds (.ckpt, .pt, .bin), and where in the file, without PyTorch.

Nothing is imported and nothing is called: a tensor becomes a ``PickledTensor``, which says where
its values are, and anything else that a pickle would make a ``Call`` or ``Unfit``. All sizes are
checked against the file here, so that who takes the values out of it allocates no more than that.

Layout: ``torch/serialization.py``. Since PyTorch 1.6 a zip file with the pickle ``data.pkl`` and a
member of values for each storage; before, a number, a version and a description of the machine,
then the pickle, the keys of the storages, all pickles, and the values behind them.
"""

from __future__ import annotations

import mmap
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ldm.checkpoints.header import DTYPE_BITS
from ldm.checkpoints.pickle_opcodes import Call, Damaged, Global, Machine
from ldm.checkpoints.pickle_tensors import (
    CLASSES,
    REBUILD,
    SUBCLASS,
    UNFIT,
    WRAPPERS,
    Storage,
    dtype_of,
    make_tensor,
)
from ldm.checkpoints.plain import Unfit
from ldm.errors import CheckpointError

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the layout before 1.6
MOST_BYTES = 64_000_000  # of a pickle, and of a zip file's list of members
ZIP_ERRORS = (zipfile.BadZipFile, struct.error, OverflowError)  # of damaged zip files
TAIL = 65_557 + 20 + 56  # bytes where a zip file's end is looked for: comment, both end records
LOCAL = 30  # bytes of a member's own header, before its name
# What training checkpoints name besides weights: records that no weight depends on.
RECORDS = ("pytorch_lightning.", "lightning.", "numpy.", "omegaconf.")
ALLOWED = re.compile(
    r"torch\.(?:(?:u?int|float|bfloat|complex|qu?int|bits)\d\w*|bool|Size|device|per_\w+"
    r"|(?:\w+\.)*\w*(?:Storage|Tensor)|_utils\._rebuild_\w+|_tensor\._rebuild_from_type_v2"
    r"|serialization\._get_layout|nn\.parameter\.Parameter|nn\.modules\.container\.ParameterDict)$"
    r"|collections\.(OrderedDict|defaultdict|Counter)$|_codecs\.encode$|builtins"
    r"\.(set|frozenset|bytearray|complex|int|float|str|list|dict|tuple|bool|bytes|object|slice)$"
)
NAME = re.compile(r"[\w.<>]{1,200}")  # is shown to users
BLOCKED = ("os.", "posix.", "nt.", "sys.")  # nothing is read of a file that names these
HINT = ", or take a model's weights out of it, which runs nothing of it: ldm-convert {} {}"
PARAMETERS = "torch.nn.modules.container.ParameterDict"


@dataclass
class Contents:
    """What a file holds.

    Attributes:
        value: with a PickledTensor in the place of each tensor.
        places: of each storage, by its key: byte in the file, number of bytes.
        size: bytes of the file.
    """

    value: object
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    size: int = 0


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


def read_contents(path: Path, weights_alone: bool = False) -> Contents:
    """Read what a pickle holds, without the values of its tensors.

    weights_alone: pass over what else it names, such as classes of a program, instead of refusing.
    Time and memory are bounded by the file's size: see ``pickle_opcodes`` and ``MOST_BYTES``.
    Raises CheckpointError for one that is damaged, no pickle of tensors, or would run code.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            reader = _Reader(path, weights_alone)
            zipped = zipfile.is_zipfile(file)
            return _zip(reader, file, size) if zipped else _legacy(reader, file, size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, LookupError, EOFError, *ZIP_ERRORS) as error:
        raise CheckpointError(
            f"{path} is truncated or not a weight file ({error}); get it again"
        ) from None


def parameters_of(content: object) -> object:
    """Return the parameters of a ``ParameterDict``; anything else as it is.

    The first programs for textual inversion save their vectors in one.
    """
    if isinstance(content, Call) and content.function == Global(PARAMETERS):
        state = content.state
        return state.get("_parameters") if isinstance(state, dict) else None
    return content


class _Reader:
    """What the names and calls of one file mean."""

    def __init__(self, path: Path, weights_alone: bool) -> None:
        self.path, self.weights_alone = path, weights_alone
        self.items, self.most_items = 0, 0
        self.storages: dict[str, int] = {}  # bytes by their keys

    def machine(self, data: bytes | mmap.mmap) -> Machine:
        # Each key and each value in a pickle takes a byte at least; more are made by repetition.
        self.most_items = len(data)
        return Machine(data, self.named, self.rebuild, self.load)

    def named(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise Damaged("its pickle names a class that no program has")
        known = ALLOWED.match(name) or name.startswith(RECORDS)
        if not known and (not self.weights_alone or name.startswith(BLOCKED)):
            raise refusal(self.path, name, self.weights_alone)

    def load(self, key: object, _: object) -> object:
        """Return the Storage of an id, or the class of one before 1.6."""
        if isinstance(key, tuple) and len(key) > 1 and key[0] == "module":
            return key[1]  # a class, with its source, before 1.6
        if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage":
            raise Damaged("it has an unknown kind of storage")
        kind, name, count = key[1], key[2], key[4]
        if not isinstance(kind, Global) or not isinstance(name, str):
            raise Damaged("it has a storage without a type or a name")
        if type(count) is not int or not 0 <= count < 2**60:
            shown = count if type(count) is int and abs(count) < 2**70 else "unknown"
            raise Damaged(f"it has a storage of {shown} values")
        dtype = dtype_of(kind.name)
        size = count * DTYPE_BITS.get(dtype, 8) // 8
        self.storages[name] = max(size, self.storages.get(name, 0))
        view = key[5] if len(key) > 5 else None  # a part of a storage, before 1.6
        if view is None:
            return Storage(name, dtype, 0, count)
        _, start, part = view
        if type(start) is not int or type(part) is not int or not 0 <= start <= start + part:
            raise Damaged("it has a part of a storage without a place")
        return Storage(name, dtype, start, part) if start + part <= count else Unfit("cut off")

    def rebuild(self, function: object, arguments: object) -> object:
        """Return a PickledTensor for a tensor, a dictionary for an ``OrderedDict``, else a Call."""
        name = function.name if isinstance(function, Global) else ""
        values: tuple[Any, ...] = arguments if isinstance(arguments, tuple) else ()
        if name == SUBCLASS and len(values) > 2:  # a class of tensors, or attributes of a tensor
            own = values[1].name if isinstance(values[1], Global) else "unknown"
            if own not in CLASSES:
                return Unfit(f"a tensor of the class {own}")
            name = values[0].name if isinstance(values[0], Global) else ""
            values = values[2] if isinstance(values[2], tuple) else ()
        if name in REBUILD:
            return make_tensor(name, values)
        if name in UNFIT:
            return Unfit(UNFIT[name])
        if name in WRAPPERS and values:
            return values[0]
        if name == "collections.OrderedDict":
            pairs = values[0] if values and isinstance(values[0], list) else []
            self.items += len(pairs)
            if self.items > self.most_items:
                raise Damaged(f"its dictionaries have more than {self.most_items:,} items")
            named = (pair for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2)
            return {key: value for key, value in named if isinstance(key, str)}
        return Call(function, arguments)


def _zip(reader: _Reader, file: BinaryIO, size: int) -> Contents:
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        members = {item.filename: item for item in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise Damaged("it has a member twice")
        names = [name for name in members if name.endswith("data.pkl")]
        if not names or any(name.endswith("constants.pkl") for name in members):
            raise Damaged("it is a zip file, but no weights of PyTorch")
        if any(item.compress_type for item in members.values()):
            raise Damaged("it has compressed members, which PyTorch never writes")
        root, pickle = names[0].removesuffix("data.pkl"), members[names[0]]
        if pickle.file_size > min(MOST_BYTES, size):
            raise Damaged(f"its pickle claims {pickle.file_size:,} bytes")
        order = members.get(f"{root}byteorder")
        if order is not None and order.file_size < 8 and archive.read(order) != b"little":
            raise Damaged("it is of a machine with the other order of bytes")
        value = reader.machine(archive.read(pickle)).run()
    _check_sizes(reader, size)
    places = {}
    for key, count in reader.storages.items():
        item = members.get(f"{root}data/{key}")
        if item is None or item.file_size < count:
            raise Damaged(f"it lacks {count:,} bytes of values in its member data/{key:.20}")
        places[key] = (_start(file, item, size), count)
    return Contents(value, places, size)


def _start(file: BinaryIO, item: zipfile.ZipInfo, size: int) -> int:
    """Return the byte at which the values of a member begin."""
    file.seek(item.header_offset)
    head = file.read(LOCAL)
    if len(head) < LOCAL or head[:4] != b"PK\x03\x04":
        raise Damaged("its list of members is wrong")
    name, extra = struct.unpack_from("<HH", head, 26)
    start = item.header_offset + LOCAL + name + extra
    if start + item.file_size > size:
        raise Damaged("its list of members is wrong")
    return start


def _legacy(reader: _Reader, file: BinaryIO, size: int) -> Contents:
    if not size:
        raise Damaged("it is empty")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        machine = reader.machine(data)
        if data[:1] != b"\x80" or machine.run() != MAGIC or machine.run() != VERSION:
            raise Damaged("it is damaged, or no pickle of tensors")
        machine.run()  # a description of the machine
        value = machine.run()
        keys = machine.run()
        _check_sizes(reader, size - machine.position)
        if not isinstance(keys, list) or not set(reader.storages) <= {
            key for key in keys if isinstance(key, str)
        }:
            raise Damaged("it lacks the values of its tensors")
        places, position = {}, machine.position
        for key in keys:
            if not isinstance(key, str) or key not in reader.storages or key in places:
                raise Damaged("its list of storages is wrong")
            count = reader.storages[key]
            if position + 8 + count > size:
                raise Damaged(f"it ends inside of its values of {count:,} bytes")
            places[key] = (position + 8, count)  # behind their number
            position += 8 + count
    return Contents(value, places, size)


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


def tensors_of(content: object) -> object:
    """Return the part of a checkpoint that names its tensors: its ``state_dict``, or all of it."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        return content["state_dict"]
    return content
