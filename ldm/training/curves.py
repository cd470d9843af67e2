"""The curves of a run, drawn from its ``metrics.jsonl``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ldm.training.figures import matplotlib_available
from ldm.training.metrics import read_log
from ldm.writing import whole_file

NOT_DRAWN = {"step", "seconds", "lr", "steps_per_second"}
MOST = 1e100  # of a value that is drawn
SMOOTH = 0.9  # decay of the exponential average, the bold line


def draw_curves(run: Path) -> None:
    """Draw ``run/curves.png``: loss, gradient norm and every other figure against the step.

    Warns, once, if matplotlib is not installed.
    """
    if not matplotlib_available("curves"):
        return
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = read_log(run)
    found = dict.fromkeys(key for row in rows for key in row)
    names = [name for name in found if name not in NOT_DRAWN and points(rows, name)[0]]
    if not names:
        return
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * lines), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, i + 1)
        steps, values = points(rows, name)
        if len(values) > 20:
            axes.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=0.8)
            axes.plot(steps, smooth(values), color="tab:blue")
        else:
            axes.plot(steps, values, color="tab:blue", marker=".")
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
    with whole_file(run / "curves.png") as new:
        figure.savefig(new, dpi=100)


def points(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a figure was measured, and its values, those that are finite."""
    found = [(row["step"], row[name]) for row in rows if abs(row.get(name, math.inf)) < MOST]
    return [step for step, _ in found], [value for _, value in found]


def smooth(values: list[float]) -> list[float]:
    """Average exponentially; the average starts at the plain mean of the first values."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total = SMOOTH * total + (1 - SMOOTH) * value
        weight = SMOOTH * weight + (1 - SMOOTH)
        out.append(total / weight)
    return out
