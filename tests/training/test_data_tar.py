"""Headers of tar files: as ``tarfile`` reads them, and what is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from ldm.training.data.tar import BLOCK, MOST_HEADER, tar_members

NAMES = ["a.txt", "in/b.jpg", "é" * 60 + ".txt", "d/" * 90 + "long.txt", "x" * 150 + ".json"]


def archive(path: Path, names: list[str], style: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=style) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 700 * number
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    return path


def header(name: bytes, kind: bytes, size: bytes, content: bytes = b"") -> bytes:
    """A member with a right checksum, whatever else it says."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:155] = f"{sum(block):06o}\0".encode()
    return bytes(block) + content + bytes(-len(content) % BLOCK)


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tmp_path: Path, style: int) -> None:
    names = [name for name in NAMES if style != tarfile.USTAR_FORMAT or "x" not in name]
    path = archive(tmp_path / "a.tar", names, style)
    with tarfile.open(path, "a", format=style) as tar:
        folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("link")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "a.txt"
        for info in (folder, link, tarfile.TarInfo("last.txt")):
            tar.addfile(info)
    with tarfile.open(path) as tar:
        theirs = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    assert [(m.name, m.offset, m.size) for m in tar_members(path)] == theirs
    assert len(theirs) == len(names) + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            header(b"a", b"0", b"777777777777"),
            "cut off at byte 512, in 'a' of 68,719,476,735",
        ),
        (header(b"a", b"0", b"\x80" + b"\x7f" * 11), "cut off"),
        (header(b"a", b"0", b"\xff" * 12), "its size is .*no number"),
        (header(b"a", b"0", b"12x"), "its size is .*no number"),
        (header(b"a", b"S", b"0"), "byte 0 begins a sparse member; pack it without --sparse"),
        (
            header(b"p", b"x", b"26", b"22 GNU.sparse.major=1\n") + header(b"a", b"0", b"0"),
            "sparse",
        ),
        (header(b"p", b"x", b"3", b"9 a=b\n"), "not as long as it says"),
        (header(b"p", b"x", b"6", b"6 abc\n"), "no value"),
        (header(b"p", b"x", b"6", b"x a=b\n"), "length of a property is"),
        (header(b"a", b"0", b"0").replace(b"a", b"b", 1), "header at byte 0 is damaged"),
        (header(b"a", b"0", b"0")[:100], "cut off at byte 100, in a header"),
        (
            header(b"p", b"x", f"{MOST_HEADER + 1:o}".encode(), bytes(MOST_HEADER + 1)),
            "has 1,048,577 bytes, over 1,048,576",
        ),
    ],
)
def test_damaged_members_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(tar_members(tmp_path / "a.tar"))


def test_a_header_behind_which_the_same_one_would_come_again(tmp_path: Path) -> None:
    """A negative size made Python's reader turn in a circle (CVE-2025-8194)."""
    size = (2**96 - 2 * BLOCK).to_bytes(12, "big")
    (tmp_path / "a.tar").write_bytes(header(b"a", b"0", size))
    with pytest.raises(ValueError, match="no number"):
        list(tar_members(tmp_path / "a.tar"))
