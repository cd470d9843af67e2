"""`ldm serve` as a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]


class ServerProcess:
    """A server that is ready; `url` is its address, `log` what it has written."""

    def __init__(self, *options: str, timeout: float = 120.0) -> None:
        command = [sys.executable, "-m", "ldm", "serve", "--port", "0", *options]
        env = {key: text for key, text in os.environ.items() if not key.startswith("LDM_")}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        self.log: list[str] = []
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        self._ready.wait(timeout)
        found = re.search(r"http://\S+", "".join(self.log))
        if found is None:
            self.process.kill()
            raise AssertionError("".join(self.log))
        self.url = found[0]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if "http://" in line:
                self._ready.set()
        self._ready.set()  # it has ended

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait(timeout)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
