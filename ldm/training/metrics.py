"""The figures of a run: averaged between two rows of ``metrics.jsonl``, and watched for NaN."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.config.checking import fits
from ldm.errors import TrainingError
from ldm.training.foreign import MOST_LINE, open_file, parse_json
from ldm.writing import whole_file

SHOWN = 10  # numbers of damaged lines that a warning gives


class Metrics:
    """Sums of the figures of the steps since the last row, on the accelerator until read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.failed = torch.tensor(torch.inf)  # the first step that was not finite

    def add(self, found: dict[str, Tensor]) -> None:
        """Add scalars of a step, or of a part of one."""
        for key, value in found.items():
            value = value.detach().float()
            self.sums[key] = self.sums[key] + value if key in self.sums else value.clone()
            self.counts[key] = self.counts.get(key, 0) + 1

    def watch(self, step: int, value: Tensor) -> None:
        """Remember ``step`` if ``value`` is the first that is not finite; waits for nothing."""
        bad = torch.where(value.detach().isfinite(), torch.inf, float(step))
        self.failed = torch.minimum(self.failed.to(bad.device), bad)

    def check(self) -> None:
        """Raise TrainingError if a loss or gradient was not finite."""
        if self.failed < torch.inf:
            raise TrainingError(
                f"the loss or its gradient is not finite at step {int(self.failed)}; lower "
                "learning_rate, then run the same command to go on from the last checkpoint"
            )

    def state(self, seconds: float) -> dict[str, Any]:
        """Return the sums as JSON has them, for a run that goes on before the next row.

        seconds: since the last row. Of several processes, each has its own sums, and a checkpoint
        those of the main one: after resuming, they stand for all.
        """
        sums = {key: float(total) for key, total in self.sums.items()}
        return {"sums": sums, "counts": dict(self.counts), "seconds": seconds}

    def load_state(self, state: dict[str, Any]) -> float:
        """Go on from ``state``; returns its seconds. Raises ValueError for another form."""
        sums, counts, seconds = (state.get(key) for key in ("sums", "counts", "seconds"))
        if not (isinstance(sums, dict) and isinstance(counts, dict) and is_number(seconds)):
            raise ValueError(f"metrics is {state!r:.60}")
        if not all(map(is_number, sums.values())) or sums.keys() != counts.keys():
            raise ValueError("the sums of metrics are no numbers, or lack their counts")
        if not all(type(count) is int and 0 < count < 2**31 for count in counts.values()):
            raise ValueError(f"the counts of metrics are {counts!r:.60}")
        if not (0 <= float(seconds or 0) < math.inf and all(map(math.isfinite, sums.values()))):
            raise ValueError("metrics holds a number that is not finite")
        self.sums = {key: torch.tensor(float(total)) for key, total in sums.items()}
        self.counts = dict(counts)
        return float(seconds or 0)

    def take(self, accelerator: Accelerator | None, seconds: float) -> dict[str, float]:
        """Return the means over the steps of the last ``seconds``, and start anew.

        With an accelerator, the means are over its processes, too.
        """
        means = {}
        for key, total in self.sums.items():
            mean = total / self.counts[key]
            means[key] = float(mean if accelerator is None else accelerator.reduce(mean, "mean"))
        means["steps_per_second"] = self.counts["grad_norm"] / seconds
        self.sums, self.counts = {}, {}
        return means


def append_row(run: Path, row: dict[str, Any]) -> None:
    """Append a row to ``run/metrics.jsonl``."""
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def log_lines(run: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield the lines of ``run/metrics.jsonl`` and their rows; None for a damaged line.

    A row has its step, a whole number, and figures, all numbers. A line of more than
    ``MOST_LINE`` bytes is damaged; its parts are yielded one by one.
    """
    path = run / "metrics.jsonl"
    try:
        file = open_file(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror}); move it away") from None
    with file:
        while line := file.readline(MOST_LINE):
            yield line, row_of(line)


def row_of(line: bytes) -> dict[str, Any] | None:
    """Read a line of the log; None for a damaged one."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row if all(map(is_number, row.values())) and 0 <= row["step"] < 2**63 else None


def is_number(value: object) -> bool:
    """Whether a value is a number that can be drawn."""
    return not isinstance(value, bool) and fits(value, float)


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read the rows of ``run/metrics.jsonl``, except damaged ones, as a kill leaves the last.

    Raises TrainingError for a log that cannot be read.
    """
    return [row for _, row in log_lines(run) if row is not None]


def cut_log(run: Path, step: int) -> None:
    """Drop the rows behind ``step``: a run that goes on from there writes them again.

    Other lines stay as they are, except damaged ones, which are left out with a warning.
    Raises TrainingError for a log that cannot be read.
    """
    path, damaged = run / "metrics.jsonl", []
    with whole_file(path) as new, new.open("wb") as kept:
        for number, (line, row) in enumerate(log_lines(run), 1):
            if row is None:
                damaged.append(number)
            elif row["step"] <= step:
                kept.write(line.rstrip(b"\r\n") + b"\n")
    if damaged:
        shown = ", ".join(map(str, damaged[:SHOWN])) + (", …" if len(damaged) > SHOWN else "")
        warnings.warn(
            f"{path}: {len(damaged)} damaged lines are left out of the log (line {shown}); the "
            "other lines are kept",
            stacklevel=2,
        )
