"""Threads sleep while they wait where other processes compute, and the pictures stay the same."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ldm.fast import waiting
from ldm.fast.waiting import Team, Watch, others_running, sleep_beside_others

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
# The processor's time of products of two threads, with nothing to do for most of the clock's time.
IDLE = """
import sys, time, torch
from ldm.fast import waiting
torch.set_num_threads(2)
waiting.others_running = lambda: others
x = torch.ones(1 << 17)

def seconds(count):
    global others
    others = count
    waiting.WATCH.next = 0.0
    waiting.sleep_beside_others(torch.device("cpu"))
    time.sleep(0.2)  # for the team to start, or to end
    began = time.process_time()
    for _ in range(10):
        x.mul_(1.0)
        time.sleep(0.01)
    return time.process_time() - began

waiting.CALM = 0.0
print(*(seconds(count) for count in (9, 0, 9)))
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Two cores, and two threads of ours; return what says how many threads run."""
    for name in waiting.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(waiting, "LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(waiting, "own_running", lambda: 1)
    monkeypatch.setattr(waiting, "EVERY", 0.0)
    monkeypatch.setattr(waiting, "CALM", 0.0)
    watch = Watch()
    monkeypatch.setattr(waiting, "WATCH", watch)

    def says(text: str) -> None:
        (tmp_path / "loadavg").write_text(text)

    yield says
    if watch.team is not None:
        watch.team.end()


def unstarted() -> Team:
    """A team of no threads."""
    return Team(ctypes.CDLL(None), 2)


def asleep() -> bool:
    """Look at the machine; return whether threads sleep now."""
    sleep_beside_others(torch.device("cpu"))
    return waiting.WATCH.team is not None


@linux
def test_asleep_beside_others_alone(machine: Callable[[str], None]) -> None:
    """And back, as often as they come and go."""
    for running, expected in ((1, False), (2, True), (3, True), (1, False), (2, True)):
        machine(f"0.03 1.72 5.86 {running}/80 4701\n")
        assert asleep() == expected


def test_a_pause_of_the_others_is_no_end(
    machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "CALM", 60.0)
    monkeypatch.setattr(Team, "start_beside", lambda threads: unstarted())
    monkeypatch.setattr(Team, "is_alive", lambda team: True)
    machine("1 1 1 2/80 1\n")
    assert asleep()
    machine("1 1 1 1/80 1\n")
    assert asleep()


def test_it_looks_now_and_then(
    machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "EVERY", 60.0)
    monkeypatch.setattr(Team, "start_beside", lambda threads: unstarted())
    machine("1 1 1 1/80 1\n")
    assert not asleep()
    machine("1 1 1 9/80 1\n")
    assert not asleep()


@pytest.mark.parametrize("text", [None, "nothing like it"])
def test_what_is_not_known_is_no_problem(machine: Callable[[str], None], text: str | None) -> None:
    if text is not None:
        machine(text)
    assert not asleep()


@pytest.mark.parametrize(
    ("cores", "threads", "others", "expected"),
    [
        (16, 16, 2, False),
        (16, 16, 3, True),
        (16, 4, 12, False),
        (16, 4, 13, True),
        (2, 1, 9, False),
    ],
)
def test_how_many_others_a_machine_bears(
    machine: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    threads: int,
    others: int,
    expected: bool,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(Team, "start_beside", lambda threads: unstarted())
    machine(f"1 1 1 {others + 1}/80 1\n")
    assert asleep() == expected


@pytest.mark.parametrize("name", waiting.CHOSEN)
def test_what_the_user_chose_stays(
    machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    machine("9 9 9 9/80 1")
    monkeypatch.setenv(name, "ACTIVE")
    assert not asleep()


def test_a_gpu_has_no_such_threads(machine: Callable[[str], None]) -> None:
    machine("9 9 9 9/80 1")
    sleep_beside_others(torch.device("cuda"))
    assert waiting.WATCH.team is None


def test_a_limit_of_memory(machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP ends a process in which there is no room for a thread."""
    monkeypatch.setattr(waiting, "address_space", lambda: 1 << 30)
    machine("9 9 9 9/80 1")
    assert not asleep()


@linux
def test_a_busy_neighbour_is_seen_and_own_threads_are_not() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            assert max(others_running() for _ in range(50)) >= 1
        finally:
            busy.kill()
    assert waiting.own_running() >= 1


@linux
@pytest.mark.skipif(torch.get_num_threads() < 2 and os.cpu_count() == 1, reason="needs two cores")
def test_threads_stop_turning_and_turn_again() -> None:
    """Of a process whose OpenMP has read its environment long ago, with the same threads."""
    environment = {name: value for name, value in os.environ.items() if name not in waiting.CHOSEN}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-c", IDLE], capture_output=True, text=True, env=environment, check=True
    )
    asleep, turning, again = map(float, done.stdout.split())
    assert 2 * max(asleep, again) < turning


@linux
def test_the_team_ends(machine: Callable[[str], None]) -> None:
    """No thread is left: neither Python's nor OpenMP's."""
    before = len(list(waiting.OWN.iterdir()))
    team = Team.start_beside(torch.get_num_threads())
    assert team is not None
    time.sleep(0.1)
    assert len(list(waiting.OWN.iterdir())) == before + team.size
    team.end()
    team.join(10)
    time.sleep(0.1)
    assert len(list(waiting.OWN.iterdir())) == before
