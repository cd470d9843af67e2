"""Only regular files are read, up to a limit; JSON is read in bounded time and depth."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from ldm.config.files import is_file, open_regular, read_limited
from ldm.config.json import MOST_DEPTH, load_json, read_json
from ldm.errors import ArgumentError, CheckpointError


@pytest.fixture
def odd_files(tmp_path: Path) -> dict[str, Path]:
    os.mkfifo(tmp_path / "a pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "a socket"))
    (tmp_path / "a folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    return {name: tmp_path / name for name in ("a pipe", "a socket", "a folder", "link")} | {
        "a device": Path("/dev/zero"),
        "a device ": Path("/dev/random"),
    }


def test_only_regular_files_are_opened(odd_files: dict[str, Path]) -> None:
    for kind, path in odd_files.items():
        with pytest.raises(CheckpointError) as caught:
            read_json(path)
        what = "a device" if kind == "link" else kind.strip()
        assert str(caught.value) == f"{path} is {what}; give an ordinary file"
        with pytest.raises(ArgumentError):
            open_regular(path, ArgumentError)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0b", "\ud800"):
        with pytest.raises(ArgumentError, match="no name that a file can have"):
            open_regular(str(tmp_path / name), ArgumentError)
        assert not is_file(tmp_path / name)
    assert not is_file(tmp_path / ("a" * 5000))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path / ("a" * 5000))


def test_limits(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_limited(path, 5) == b"12345"
    with pytest.raises(CheckpointError, match="longer than 0 KB, which no file of its kind is"):
        read_limited(path, 4)
    assert read_limited("/proc/self/status", 1 << 20)  # of size 0, by its own account


def test_pipes_are_read_where_they_may_be(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert read_limited(path, 10, pipes=True) == b""  # nobody writes
    writer = threading.Thread(target=lambda: path.write_bytes(b"x" * 5))
    writer.start()
    time.sleep(0.1)
    assert read_limited(path, 10, pipes=True) == b"x" * 5
    writer.join()
    with pytest.raises(CheckpointError, match="is a device"):
        read_limited("/dev/zero", 10, pipes=True)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[" * 101 + "]" * 101, "9" * 5000, '"\ud800', "", "nul"],
)
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        load_json(text)


def test_json_that_is_read() -> None:
    deep = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert str(load_json(deep)) == deep
    assert load_json(b'{"a": [1, {"b": 1e400}]}') == {"a": [1, {"b": float("inf")}]}
    assert load_json('"a\nb"', strict=False) == "a\nb"
    assert load_json("3") == 3
