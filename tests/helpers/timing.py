"""The processor's time of commands: the wall's depends on what else the machine does."""

import os
import subprocess
import sys
from pathlib import Path

INFO = "import sys; from ldm.cli.info import main; main(); assert 'torch' not in sys.modules"


def info_seconds(path: Path, runs: int = 3) -> float:
    """Return the least processor time of ``ldm info PATH``, start included, without PyTorch."""
    times = []
    for _ in range(runs):
        before = os.times()
        subprocess.run([sys.executable, "-c", INFO, str(path)], check=True, capture_output=True)
        after = os.times()
        children = (after.children_user, after.children_system)
        times.append(sum(children) - before.children_user - before.children_system)
    return min(times)
