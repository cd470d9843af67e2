"""Two ways to do the same, timed in turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

MOST = 0.10  # by which the middle one of the shortest runs may be longer than the shortest
PATIENCE = 60.0  # seconds for which a race goes on where they differ by more


@dataclass
class Race:
    """What a section of the benchmark hands over: two actions of equal outcome, or nearly."""

    what: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    # What the outcomes differ by, and what they may; taken before the race.
    check: Callable[[], tuple[float, float]]
    goal: float  # how many times as fast ours shall be
    peer: str = "diffusers"
    turns: int = 3  # at least; and as many of the shortest runs have to agree
    runs: int = 1  # in a turn; the first ones find the caches full of what the other one did
    # Where the actions measure something else than their wall time, they return it.
    measured: bool = False
    more: Callable[[], dict[str, Any]] = dict  # further figures, afterwards


@dataclass
class Result:
    """A line of the table."""

    name: str
    what: str
    peer: str
    ours: float  # seconds (or bytes), the least of all turns
    theirs: float
    ratio: float
    goal: float
    spread: float
    difference: float
    allowed: float
    problems: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def row(self, anyway: bool) -> str:
        """Of a Markdown table; without figures where they cannot be trusted."""
        cells = f"| {self.name} | {self.what} | {self.peer} |"
        if self.problems and not anyway:
            return f"{cells} refused: {'; '.join(self.problems)} | | | | |"
        met = "yes" if self.ratio >= self.goal else "**no**"
        more = ", ".join(f"{key} {value}" for key, value in self.more.items())
        doubt = f" ({'; '.join(self.problems)})" if self.problems else ""
        return (
            f"{cells} {self.ours:.4g} | {self.theirs:.4g} | **{self.ratio:.2f}** "
            f"| {self.goal:g}: {met} | {self.spread:.0%}{doubt}{'; ' * bool(more)}{more} |"
        )


HEAD = "| | what | against | ours | theirs | ratio | goal | spread |\n" + "|---" * 8 + "|"


def taken_by(action: Callable[[], Any], measured: bool, clock: Callable[[], float]) -> float:
    """Return the seconds of a run, or those that it returns as its own measure."""
    began = clock()
    result = action()
    seconds = clock() - began
    return float(result) if measured else seconds


def run(
    name: str,
    race: Race,
    turns: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Compare the outcomes, then time both in turns, after a warm-up each."""
    difference, allowed = race.check()
    least, began = turns or race.turns, clock()
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in count():
        for action, times in zip((race.ours, race.theirs), taken, strict=True):
            gc.collect()
            seconds = min(taken_by(action, race.measured, clock) for _ in range(race.runs))
            if turn:
                times.append(seconds)
        if turn < least:
            continue
        best = [sorted(times)[:least] for times in taken]
        spread = max(statistics.median(times) / times[0] - 1 for times in best)
        if spread <= MOST or clock() - began > PATIENCE:
            break
    ours, theirs = map(min, taken)
    problems = []
    if not difference <= allowed:  # also where it is NaN
        problems.append(f"the outcomes differ by {difference:.2g}, more than {allowed:.2g}")
    if spread > MOST:
        problem = (
            f"the middle one of the {least} shortest runs is {spread:.0%} longer than the shortest"
        )
        problems.append(problem)
    return Result(
        name, race.what, race.peer, ours, theirs, theirs / ours, race.goal, spread, difference,
        allowed, problems, race.more(),
    )  # fmt: skip
