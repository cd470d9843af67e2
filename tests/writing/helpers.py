"""Processes that write, and are killed while they do."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def process(code: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run code in ``folder`` up to where it prints a line, then let the block decide."""
    command = [sys.executable, "-c", f"from ldm.writing import *\nfrom pathlib import Path\n{code}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout and running.stdout.readline()
        try:
            yield running
        finally:
            running.kill()


def killed_at(code: str, folder: Path) -> None:
    """Kill a process where it prints a line."""
    with process(code, folder):
        pass
