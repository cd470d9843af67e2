"""Two ways to do the same, timed in turns."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

MOST = 0.10  # by which half of the turns' ratios may lie away from their median
PATIENCE = 60.0  # seconds for which a race goes on where they differ by more


class SkipError(Exception):
    """A section that cannot run here, and why: a library is missing, or it would take too long."""


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
    turns: int = 3  # at least
    runs: int = 1  # in a turn; the first ones find the caches full of what the other one did
    # Where the actions measure something else than their wall time, they return it.
    measured: bool = False
    more: Callable[[], dict[str, Any]] = dict  # further figures, afterwards
    # Further figures that follow from the medians of ours and of theirs.
    of_medians: Callable[[float, float], dict[str, Any]] = lambda ours, theirs: {}


@dataclass
class Result:
    """A line of the table."""

    name: str
    what: str
    peer: str
    ours: float  # seconds (or bytes), the median of all turns
    theirs: float
    least: tuple[float, float]  # of ours and of theirs
    ratio: float  # the median of the turns' ratios: each pairs two neighbours in time
    goal: float
    spread: float  # the median distance of the turns' ratios from it, in parts of it
    difference: float
    allowed: float
    problems: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    state: str = "measured"  # or "failed", "skipped"

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        found = asdict(self)
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in found.items()
        } | {"least": None if math.isnan(self.ratio) else self.least}

    def row(self, anyway: bool) -> str:
        """Of a Markdown table; without figures where they cannot be trusted."""
        cells = f"| {self.name} | {self.what} | {self.peer} |"
        if self.problems and (not anyway or math.isnan(self.ratio)):
            word = "" if self.state == "skipped" else "refused: "
            return f"{cells} {word}{'; '.join(self.problems)} | | | | |"
        met = "yes" if self.ratio >= self.goal else "**no**"
        figures = {"least": " and ".join(f"{each:.4g}" for each in self.least), **self.more}
        figures["difference"] = f"{self.difference:.1g}"
        more = ", ".join(f"{key} {value}" for key, value in figures.items())
        doubt = f" ({'; '.join(self.problems)})" if self.problems else ""
        return (
            f"{cells} {self.ours:.4g} | {self.theirs:.4g} | **{self.ratio:.2f}** "
            f"| {self.goal:g}: {met} | {self.spread:.0%}{doubt}; {more} |"
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
    patience: float = PATIENCE,
    hasty: bool = False,
) -> Result:
    """Compare the outcomes, then time both in turns, after a warm-up each.

    turns: at least so many; further ones while the ratios spread, for ``patience`` seconds.
    hasty: time the first turn, too, and leave garbage lying: for figures that mean nothing.
    """
    difference, allowed = race.check()
    least, began = turns or race.turns, clock()
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in count(int(hasty)):
        for action, times in zip((race.ours, race.theirs), taken, strict=True):
            if not hasty:
                gc.collect()
            seconds = min(taken_by(action, race.measured, clock) for _ in range(race.runs))
            if turn:
                times.append(seconds)
        if turn < least:
            continue
        ratios = [theirs / ours for ours, theirs in zip(*taken, strict=True)]
        ratio = statistics.median(ratios)
        spread = statistics.median(abs(each - ratio) for each in ratios) / ratio
        if spread <= MOST or clock() - began > patience:
            break
    ours, theirs = map(statistics.median, taken)
    problems = []
    if not difference <= allowed:  # also where it is NaN
        problems.append(f"the outcomes differ by {difference:.2g}, more than {allowed:.2g}")
    if spread > MOST:
        problems.append(f"half of the turns' ratios lie {spread:.0%} or more from their median")
    shortest = (min(taken[0]), min(taken[1]))
    return Result(
        name, race.what, race.peer, ours, theirs, shortest, ratio, race.goal, spread, difference,
        allowed, problems, race.more() | race.of_medians(ours, theirs),
    )  # fmt: skip


def failed(name: str, error: Exception) -> Result:
    """Return the line of a section that could not be measured, or was skipped."""
    none = math.nan
    message = " ".join(str(error).split()) or type(error).__name__
    state = "skipped" if isinstance(error, SkipError) else "failed"
    line = Result(name, "", "", none, none, (none, none), none, none, none, none, none, state=state)
    line.problems.append(f"{state}: {message:.300}")
    return line
