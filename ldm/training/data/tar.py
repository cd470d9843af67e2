"""The headers of tar files: where each member lies, read in time linear in their number.

The formats are those of POSIX.1-2001, pax interchange format and ustar; GNU's long names
(gnu.org/software/tar/manual, "Basic Tar Format") are read, too. Python's ``tarfile`` takes the
square of a header's length, and calls itself for each header of headers, before it notices damage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ldm.training.foreign import open_file

BLOCK = 512
MOST_HEADER = 1 << 20  # bytes of a member's name and properties
FILES = b"0\x007"  # plain ones, as POSIX, older programs and contiguous ones have them
LINKS_AND_DEVICES = b"123456"  # without content, whatever their size says
NO_SPARSE = "pack it without --sparse"


@dataclass(frozen=True)
class TarMember:
    """A file in a tar file."""

    name: str
    offset: int  # of its content
    size: int


def tar_members(path: Path) -> Iterator[TarMember]:
    """Yield the files of a tar file in their order; folders, links and devices are left out.

    Raises OSError, and ValueError for a damaged header, for a member that is not whole, for a
    sparse one, and for a name or properties of more than ``MOST_HEADER`` bytes.
    """
    with open_file(path) as file:
        end = os.fstat(file.fileno()).st_size
        place, given = 0, Given()
        while (block := read_block(file, place, end)) is not None:
            kind, size = block[156:157], number(block[124:136], "size")
            if kind == b"S" or given.sparse:
                raise ValueError(f"byte {place} begins a sparse member; {NO_SPARSE}")
            name, size = given.name or name_of(block), given.size if given.size >= 0 else size
            content = place + BLOCK
            if kind in LINKS_AND_DEVICES:
                size = 0
            if content + size > end:
                raise ValueError(
                    f"it is cut off at byte {end:,}, in {name!r:.100} of {size:,} bytes"
                )
            place = content + -(-size // BLOCK) * BLOCK
            if kind in b"LKxgX":
                given.read(kind, header_content(file, content, size))
                continue
            if kind in FILES and not (kind == b"\0" and name.endswith("/")):
                yield TarMember(name, content, size)
            given = Given()


class Given:
    """What the headers before a member's say of it."""

    def __init__(self) -> None:
        self.name = ""
        self.size = -1
        self.sparse = False

    def read(self, kind: bytes, content: bytes) -> None:
        """Read a header of a kind. What is global (g) is of no use to us."""
        if kind == b"L":
            self.name = as_name(content.split(b"\0", 1)[0])
        elif kind in b"xX":
            for key, value in properties(content):
                if key == b"path":
                    self.name = as_name(value)
                elif key == b"size":
                    self.size = decimal(value, "size")
                elif key.startswith(b"GNU.sparse"):
                    self.sparse = True


def read_block(file: BinaryIO, place: int, end: int) -> bytes | None:
    """Read the header at a place; None at the end of the archive. Raises ValueError for damage."""
    if place >= end:
        return None
    file.seek(place)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise ValueError(f"it is cut off at byte {end:,}, in a header")
    if not any(block):
        return None
    wanted = number(block[148:156], "checksum")
    unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    negative = sum(256 for byte in block[:148] + block[156:] if byte > 127)  # as old programs sum
    if wanted not in (unsigned, unsigned - negative):
        raise ValueError(f"the header at byte {place:,} is damaged")
    return block


def header_content(file: BinaryIO, place: int, size: int) -> bytes:
    """Read the content of a header, a name or properties."""
    if size > MOST_HEADER:
        raise ValueError(f"the header at byte {place:,} has {size:,} bytes, over {MOST_HEADER:,}")
    file.seek(place)
    return file.read(size)


def number(field: bytes, what: str) -> int:
    """Read a number in octal digits, or GNU's in base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    if digits.strip(b"01234567"):
        raise ValueError(f"its {what} is {field[:16]!r}, which is no number")
    return int(digits, 8)


def decimal(digits: bytes, what: str) -> int:
    """Read a number in decimal digits."""
    if not digits.isdigit() or len(digits) > 20:
        raise ValueError(f"its {what} is {digits[:24]!r}, which is no number")
    return int(digits)


def properties(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) of the records ``b"<length> <key>=<value>\\n"`` of a pax header."""
    place = 0
    while place < len(content) and content[place]:
        space = content.find(b" ", place, place + 8)
        length = decimal(content[place : max(space, place)], "length of a property")
        record = content[space + 1 : place + length]
        if place + length > len(content) or not record.endswith(b"\n"):
            raise ValueError("a property is not as long as it says")
        key, equals, value = record[:-1].partition(b"=")
        if not equals:
            raise ValueError("a property has no value")
        yield key, value
        place += length


def name_of(block: bytes) -> str:
    """Return the name in a header, with POSIX's prefix."""
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return as_name(prefix + b"/" + name if prefix else name)


def as_name(name: bytes) -> str:
    """Decode a name; what is not UTF-8 is written as in a bytes literal."""
    return name.decode("utf-8", "backslashreplace")
