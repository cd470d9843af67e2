"""Files and folders are written whole or not at all, and errors name what the user knows."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ldm.writing import as_os_error, whole_file, whole_files, whole_path
from tests.helpers.files import names
from tests.writing.helpers import killed_at


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path, overwrite=False) as new:
        assert new.suffix == ".txt" and not path.exists()
        new.write_text("one")
    with pytest.raises(FileExistsError, match=r"'\S+/a\.txt'"), whole_file(path, False) as new:
        new.write_text("two")
    assert path.read_text() == "one"
    with whole_file(path) as new:
        new.write_text("three")
    assert path.read_text() == "three" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    for write in (whole_file, whole_path):
        with pytest.raises(type(error)) as caught, write(path) as new:
            new.write_text("half")
            raise error
        assert path.read_text() == "old" and names(tmp_path) == ["a"]
        if isinstance(caught.value, OSError):
            assert caught.value.filename == str(path)


def test_an_error_of_another_file_names_that(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "a"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", none)
    with whole_file(tmp_path / "a", overwrite=False) as new:
        new.write_text("one")
    with pytest.raises(FileExistsError), whole_file(tmp_path / "a", overwrite=False) as new:
        new.write_text("two")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "one"


@pytest.mark.parametrize("old", ["nothing", "file", "folder"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_a_path_of_either_kind(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "old"

    def make(path: Path, kind: str, text: str) -> None:
        if kind == "file":
            path.write_text(text)
        elif kind == "folder":
            path.mkdir()
            (path / text).write_text(text)

    make(path, old, "old")
    with whole_path(path) as place:
        make(place, new, "new")
    assert names(tmp_path) == ["old"]
    assert path.read_text() == "new" if new == "file" else names(path) == ["new"]


def test_a_failed_swap_is_undone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with pytest.raises(FileNotFoundError), whole_path(tmp_path / "a"):
        pass  # nothing is written
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["old"]


def test_files_of_a_folder_that_exists(tmp_path: Path) -> None:
    """Others stay; a kill or an error before the end changes none."""
    (tmp_path / "unet").mkdir()
    for name in ("unet/weights", "index", "mine"):
        (tmp_path / name).write_text("old")
    code = """
with whole_files(Path()) as new:
    (new / "index").write_text("new")
    print(flush=True)
    input()
"""
    killed_at(code, tmp_path)
    assert (tmp_path / "index").read_text() == "old"
    with whole_files(tmp_path) as new:
        (new / "unet").mkdir()
        (new / "unet" / "weights").write_text("new")
        (new / "index").write_text("new")
        assert (tmp_path / "index").read_text() == "old"
    assert names(tmp_path) == ["index", "mine", "unet"] and names(tmp_path / "unet") == ["weights"]
    texts = [(tmp_path / name).read_text() for name in ("unet/weights", "index", "mine")]
    assert texts == ["new", "new", "old"]


def test_files_of_a_new_folder(tmp_path: Path) -> None:
    with whole_files(tmp_path / "far" / "model") as new:
        (new / "index").write_text("new")
        assert not (tmp_path / "far" / "model").exists()
    assert names(tmp_path / "far") == ["model"] and names(tmp_path / "far" / "model") == ["index"]


def test_errors_of_libraries() -> None:
    error = as_os_error(Exception("I/O error: No space left on device (os error 28)"), Path("a"))
    assert (error.errno, error.filename) == (errno.ENOSPC, "a")
    assert str(as_os_error(Exception("odd"), Path("a"))) == "cannot write a (odd)"
    own = OSError(errno.EFBIG, "File too large")
    assert as_os_error(own, Path("a")) is own
