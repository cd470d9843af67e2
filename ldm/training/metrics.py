"""The figures of a run: averaged between two rows of ``metrics.jsonl``, and watched for NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.errors import TrainingError


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


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read the rows of ``run/metrics.jsonl``, except one that a kill has cut off."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def cut_log(run: Path, step: int) -> None:
    """Drop the rows behind ``step``: a run that goes on from there writes them again."""
    rows = [row for row in read_log(run) if row["step"] <= step]
    partial = run / "metrics.jsonl.partial"
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(run / "metrics.jsonl")
