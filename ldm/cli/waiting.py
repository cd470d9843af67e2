"""How the threads of a product wait for each other: by turning, or asleep where others compute.

GNU's OpenMP, which PyTorch has on Linux, lets a thread that has done its part turn in a loop until
the others have, too. That is soonest on a quiet machine (by half, of the built-in model's small
products). But a core that turns is lost for other work, and for the thread that is waited for: two
drawings at once took six times as long as one after the other, asleep three quarters.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

LOAD = Path("/proc/loadavg")
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # by the user
FEW = 8  # of so many cores, one may be busy


def wait_asleep_beside_others() -> None:
    """Let threads sleep while they wait, if other processes compute now.

    OpenMP reads its environment once, when PyTorch is imported: later, this changes nothing. What
    the user set stays.
    """
    if "torch" in sys.modules or any(name in os.environ for name in CHOSEN):
        return
    if others_running() > (os.cpu_count() or 1) // FEW:
        os.environ["GOMP_SPINCOUNT"] = "0"


def others_running() -> int:
    """Count the threads of this machine that run or wait for a core; 0 where that is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(LOAD.read_text().split()[3].partition("/")[0]) - 1
    return 0
