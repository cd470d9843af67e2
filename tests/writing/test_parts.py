"""Part folders: nothing is left of a process that was killed, nothing in use is touched."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ldm.writing import claim, clear_leftovers, locks, part_folder, parts, whole_file
from tests.helpers.files import names
from tests.writing.helpers import killed_at, process

WRITING = """
with whole_file(Path("a.txt")) as new:
    new.write_text("half")
    print(new.parent.name, flush=True)
    input()
"""


def test_of_a_killed_process_the_next_leaves_nothing(tmp_path: Path) -> None:
    killed_at(WRITING, tmp_path)
    (left,) = names(tmp_path)
    assert left.startswith(".ldm-") and left.endswith(".part")
    with whole_file(tmp_path / "b.txt") as new:
        assert left not in names(tmp_path)
        new.write_text("whole")
    assert names(tmp_path) == ["b.txt"]


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    with process(WRITING, tmp_path) as running:
        (part,) = names(tmp_path)
        clear_leftovers(tmp_path)
        with whole_file(tmp_path / "b.txt") as new:
            new.write_text("whole")
        assert names(tmp_path) == [part, "b.txt"]
        running.communicate(b"\n")
    assert names(tmp_path) == ["a.txt", "b.txt"]
    assert (tmp_path / "a.txt").read_text() == "half"


@pytest.mark.parametrize("lock", [True, False])
def test_of_what_cannot_be_locked_age_decides(
    lock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So on Windows, and of a machine whose locks are not seen here."""
    if lock:
        monkeypatch.setattr(parts, "machine", lambda: "0" * 8)
    else:
        monkeypatch.setattr(locks, "fcntl", None)
    killed_at(WRITING, tmp_path)
    clear_leftovers(tmp_path)
    (left,) = names(tmp_path)
    with part_folder(tmp_path) as part:
        clear_leftovers(tmp_path)
        assert part.is_dir()
    day = time.time() - parts.UNLOCKED_SECONDS - 60
    os.utime(tmp_path / left, (day, day))
    clear_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_of_earlier_versions(tmp_path: Path) -> None:
    (tmp_path / ".ldm-0123456789abcdef.part").write_bytes(b"x")  # a picture
    (tmp_path / ".ldm-0123456789abcdee.part").mkdir()  # a model, which had no lock
    (tmp_path / ".ldm-0123456789abcdee.part" / "file").write_bytes(b"x")
    for name in (".ldm-notes", "ldm.part", ".other.part"):  # not ours
        (tmp_path / name).write_bytes(b"x")
    clear_leftovers(tmp_path)
    kept = [".ldm-0123456789abcdee.part", ".ldm-notes", ".other.part", "ldm.part"]
    assert names(tmp_path) == kept
    old = time.time() - parts.UNLOCKED_SECONDS - 60
    os.utime(tmp_path / kept[0], (old, old))
    clear_leftovers(tmp_path)
    assert names(tmp_path) == kept[1:]


def test_links_and_pipes_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(b"x")
    (tmp_path / ".ldm-a.part").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / ".ldm-b.part")
    clear_leftovers(tmp_path)
    assert names(tmp_path) == [".ldm-a.part", ".ldm-b.part", "mine"]
    assert names(tmp_path / "mine") == ["file"]


def test_of_a_folder_that_was_being_replaced(tmp_path: Path) -> None:
    """A kill between the two renames: the next process puts the old folder back."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    code = """
with part_folder(Path()) as part:
    (part / ".ldm-old").mkdir()
    Path("model").rename(part / ".ldm-old" / "model")
    print(part, flush=True)
    input()
"""
    killed_at(code, tmp_path)
    assert "model" not in names(tmp_path)
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]


def test_many_writers_and_lookers_at_once(tmp_path: Path) -> None:
    """Nobody takes a folder that another has just made for a leftover."""
    errors: list[Exception] = []

    def write(thread: int) -> None:
        try:
            for i in range(60):
                with whole_file(tmp_path / f"{thread}-{i}", overwrite=False) as new:
                    new.write_text("x")
                clear_leftovers(tmp_path)
                with claim(tmp_path / f"claim-{thread}") as granted:
                    assert granted
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(names(tmp_path)) == 8 * 60 and not any(n.startswith(".") for n in names(tmp_path))


def test_large_folders_are_not_looked_through_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    scan = os.scandir
    monkeypatch.setattr(parts, "ALWAYS", -1.0)
    monkeypatch.setattr(parts, "SHARE", 1e-9)

    def counted(folder: Path) -> object:
        looks.append(folder)
        return scan(folder)

    monkeypatch.setattr(parts.os, "scandir", counted)
    clear_leftovers(tmp_path)
    clear_leftovers(tmp_path)
    assert looks == [tmp_path]
