"""Claims: one process has a name at a time, and none that was killed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ldm.writing import claim, locks, wait_until_free
from tests.helpers.files import names
from tests.writing.helpers import killed_at, process

CLAIM = """
import sys
with claim(Path("a.png")) as granted:
    print(granted, flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with process(CLAIM, tmp_path) as running:
        with claim(path) as granted, claim(tmp_path / "b.png") as other:
            assert (granted, other) == (False, True)
        began = time.monotonic()
        assert running.stdin
        threading.Timer(0.3, running.stdin.close).start()
        wait_until_free(path)
        assert time.monotonic() - began > 0.25
        with claim(path) as granted:
            assert granted
    assert names(tmp_path) == []
    wait_until_free(path)


def test_a_killed_process_blocks_nobody(tmp_path: Path) -> None:
    killed_at(CLAIM, tmp_path)
    assert len(names(tmp_path)) == 1
    with claim(tmp_path / "a.png") as granted:
        assert granted
    assert names(tmp_path) == []


def test_within_a_process(tmp_path: Path) -> None:
    with claim(tmp_path / "a.png") as first, claim(tmp_path / "a.png") as second:
        assert (first, second) == (True, False)


@pytest.mark.parametrize("reason", ["no locks", "no folder"])
def test_where_nothing_can_be_claimed_all_is_granted(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "no locks":
        monkeypatch.setattr(locks, "fcntl", None)
    path = tmp_path / "a.png" if reason == "no locks" else tmp_path / "missing" / "a.png"
    with claim(path) as first, claim(path) as second:
        assert first and second
    assert names(tmp_path) == []
