"""The time of a run over all its sessions, and how long ago each thing was last done."""

from __future__ import annotations

import time


class Clock:
    """Measures a run's seconds.

    Args:
        spent: seconds of the sessions before this one.
        began: what ``time.monotonic`` returned when this session began; None: now.
    """

    def __init__(self, spent: float = 0.0, began: float | None = None) -> None:
        self.began = time.monotonic()  # of what is measured by ``since``
        self.zero = (self.began if began is None else began) - spent
        self.last: dict[str, float] = {}

    def spent(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self.zero

    def since(self, name: str) -> float:
        """Return the seconds since ``restart(name)``, or since this clock was made."""
        return time.monotonic() - self.last.get(name, self.began)

    def restart(self, name: str) -> float:
        """Measure ``name`` from now on; returns the seconds that ended, never 0."""
        seconds = self.since(name)
        self.last[name] = time.monotonic()
        return max(seconds, 1e-9)

    def leave_out(self, name: str, seconds: float) -> None:
        """Take seconds off what ``since(name)`` will return."""
        self.last[name] = self.last.get(name, self.began) + seconds
