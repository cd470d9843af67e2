"""How the threads of a product wait for each other: by turning, or asleep where others compute.

GNU's OpenMP, which PyTorch has on Linux, lets a thread that has done its part turn in a loop until
the others have, too. That is soonest on a quiet machine (by half, of the built-in model's small
products). But a core that turns is lost for other work, and for the thread that is waited for: two
drawings at once took six times as long as one after the other, asleep three quarters.

OpenMP reads only once how long its threads turn. But while a process has more of them than cores,
they turn a hundred times instead of 300,000 (libgomp's manual, GOMP_SPINCOUNT). So beside others
one more team of threads is kept, which does nothing. The team that computes stays as large as it
is: with another number of threads, products round otherwise, and bfloat16's pictures differ.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path

import torch

from ldm.memory.system import address_space

LOAD, OWN = Path("/proc/loadavg"), Path("/proc/self/task")
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # by the user
FEW = 8  # of so many cores, one may be busy
EVERY = 0.1  # seconds from one look at the machine to the next
CALM = 1.0  # seconds without others, after which threads turn again


class Watch:
    """Who else computes on this machine, now and then, and what follows for our threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.next = self.seen = -float("inf")  # by time.monotonic
        self.team: Team | None = None

    def look(self) -> None:
        """Let threads sleep while they wait if others compute, and turn if none did for a while.

        It looks no more often than ``EVERY`` seconds. What the user set stays.
        """
        now = time.monotonic()
        if now < self.next or not self.lock.acquire(blocking=False):
            return
        try:
            self.next = now + EVERY
            if any(name in os.environ for name in CHOSEN):
                return
            threads, cores = torch.get_num_threads(), os.cpu_count() or 1
            if threads > 1 and others_running() > max(cores // FEW, cores - threads):
                self.seen = now
            asleep = now - self.seen <= CALM
            if self.team is not None and not (asleep and self.team.is_alive()):
                self.team.end()
                self.team = None
            if asleep and self.team is None:
                self.team = Team.start_beside(threads)
        finally:
            self.lock.release()


class Team(threading.Thread):
    """A thread with OpenMP threads of its own, all asleep until its end."""

    def __init__(self, library: ctypes.CDLL, size: int) -> None:
        super().__init__(name="ldm-idle-team", daemon=True)
        self.library, self.size = library, size
        self.done = threading.Event()

    @classmethod
    def start_beside(cls, threads: int) -> Team | None:
        """Start as many as make, with a team of so many threads, one more than cores.

        Returns None without GNU's OpenMP, and under ``ulimit -v``: where there is no room for a
        thread, OpenMP ends the process.
        """
        library = ctypes.CDLL(None)
        if not hasattr(library, "GOMP_parallel") or address_space() is not None:
            return None
        team = cls(library, max(2, len(os.sched_getaffinity(0)) - threads + 2))
        team.start()
        return team

    def run(self) -> None:
        """Start the team on an empty task, and wait."""
        nothing = ctypes.cast(self.library.free, ctypes.c_void_p)  # free(NULL)
        self.library.GOMP_parallel(nothing, None, self.size, 0)
        self.done.wait()

    def end(self) -> None:
        """End the thread, and with it OpenMP's."""
        self.done.set()


WATCH = Watch()


def sleep_beside_others(device: torch.device) -> None:
    """Let threads sleep while they wait if other processes compute now: see ``Watch.look``."""
    if device.type == "cpu":
        WATCH.look()


def others_running() -> int:
    """Count the threads of other processes that run or wait for a core; 0 if that is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        running = int(LOAD.read_text().split()[3].partition("/")[0])
        return 0 if running <= 1 else max(0, running - own_running())
    return 0


def own_running() -> int:
    """Count the threads of this process that run or wait for a core."""
    count = 0
    for task in OWN.iterdir():
        with contextlib.suppress(OSError):  # it has ended
            count += (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    return count
