"""Threads sleep while they wait where other processes compute."""

import os
import subprocess
import sys

import pytest

from ldm.cli import waiting


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Without PyTorch, on two cores; return what says how many threads run."""
    monkeypatch.delitem(sys.modules, "torch")
    for name in waiting.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(waiting, "LOAD", tmp_path / "loadavg")
    return lambda text: (tmp_path / "loadavg").write_text(text)


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ("0.03 1.72 5.86 1/80 4701\n", None),
        ("0.03 1.72 5.86 2/80 4701\n", "0"),
        ("nothing like it", None),
    ],
)
def test_asleep_beside_others_alone(alone, monkeypatch, load, expected) -> None:
    alone(load)
    monkeypatch.setenv("GOMP_SPINCOUNT", "x")  # so that it is restored
    monkeypatch.delenv("GOMP_SPINCOUNT")
    waiting.wait_asleep_beside_others()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_no_file_is_no_problem(alone) -> None:
    waiting.wait_asleep_beside_others()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_many_cores_bear_one_neighbour(alone, monkeypatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    alone("1 1 1 3/80 1")  # this one and two more
    waiting.wait_asleep_beside_others()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_what_the_user_chose_stays(alone, monkeypatch) -> None:
    alone("9 9 9 9/80 1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    waiting.wait_asleep_beside_others()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
def test_a_busy_neighbour_is_seen() -> None:
    code = "from ldm.cli.waiting import others_running as n; print(max(n() for _ in range(50)))"
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        finally:
            busy.kill()
    assert int(found.stdout) >= 1
