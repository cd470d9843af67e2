"""`python -m tools.bench --device cuda`: a table of ours and diffusers' modes, within a time.

Rows are measured in a process of their own (`tools.bench.gpu`), which is ended when the time is up:
compiling cannot be interrupted otherwise. What was measured is written after each row. A process
that dies loses the row that it was at; another one goes on with those behind it.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tools.bench.processes import ROOT, work

BUDGET = 225.0  # seconds, with all imports and compilations
HEAD = (
    "| | batch | steps/s | picture, s | first, s | peak, GB | of the card's rate | error |\n"
    + "|---" * 8
    + "|"
)
ENDED = "the time was up"
UNABLE = "this card cannot"


def command(rows: Sequence[int], rehearse: bool) -> list[str]:
    """Return the command that measures rows."""
    where = ["--device", "cpu", "--rehearse"] if rehearse else ["--device", "cuda"]
    return [sys.executable, "-m", "tools.bench.gpu", *map(str, rows), *where]


def environment(rehearse: bool) -> dict[str, str]:
    """Return the process's variables: compiled kernels are kept for the next run."""
    found = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    found.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work() / "inductor"))
    return found | ({"TORCHDYNAMO_DISABLE": "1"} if rehearse else {})


def lines_of(process: subprocess.Popen[str], until: float) -> Iterator[str]:
    """Yield what a process prints; end it, and stop, when the time is up."""
    assert process.stdout is not None
    printed: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            printed.put(line)
        printed.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            try:
                line = printed.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            if line is None:
                return
            yield line
    finally:
        process.kill()
        process.wait()


def measured(
    labels: Sequence[str],
    start: Callable[[Sequence[int]], subprocess.Popen[str]],
    budget: float,
) -> Iterator[dict[str, Any]]:
    """Yield each row as it is done; those that are not have a "problem".

    start: starts the process for the numbers of rows.
    """
    until, left = time.monotonic() + budget, list(range(len(labels)))
    while left and time.monotonic() < until:
        at = left[0]
        for line in lines_of(start(left), until):
            if not line.startswith('{"row"'):
                continue
            found = json.loads(line)
            at = found["row"]
            if not found.get("began"):
                left.remove(at)
                yield found
        if left and time.monotonic() < until:
            at = at if at in left else left[0]
            left.remove(at)
            yield {"row": at, "problem": "its process died"}
    for number in left:
        yield {"row": number, "problem": ENDED}


def line(label: str, row: dict[str, Any]) -> str:
    """Write a row of the table."""
    if "problem" in row:
        return f"| {label} | {row['problem']} | | | | | | |"
    error = "" if row["difference"] is None else f"{row['difference']:.2g}"
    return (
        f"| {label} | {row['batch']} | {row['steps_per_s']:.4g} | {row['picture_s']:.3g} "
        f"| {row['first_picture_s']:.3g} | {row['peak_mb'] / 1000:.3g} | {row['share']:.0%} "
        f"| {error} |"
    )


def ratios(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Compare the best exact of ours with the best of diffusers', by family and batch."""
    best: dict[tuple[str, int, str], float] = {}
    for row in rows:
        if "problem" not in row and row["mode"] != "fp8":  # which is not exact
            key = (row["family"], row["batch"], row["library"])
            best[key] = max(best.get(key, 0.0), row["steps_per_s"])
    return [
        f"{family}, batch {batch}: {ours / best[family, batch, 'diffusers']:.2f} times the steps/s "
        "of diffusers' best that was measured"
        for (family, batch, library), ours in best.items()
        if library == "ldm" and (family, batch, "diffusers") in best
    ]


def table(budget: float, rehearse: bool, write: Callable[[list[dict[str, Any]]], None]) -> bool:
    """Measure and print all rows; return whether none failed. write: keeps what there is so far."""
    from tools.bench.gpu import ROWS

    def start(rows: Sequence[int]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(rows, rehearse), stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=environment(rehearse),
        )  # fmt: skip

    print(HEAD, flush=True)
    rows: list[dict[str, Any]] = []
    for found in measured([row.label() for row in ROWS], start, budget):
        rows.append(found)
        print(line(ROWS[found["row"]].label(), found), flush=True)
        write(rows)
    print("\n" + "\n".join(ratios(rows)))
    return all(row.get("problem") in (None, ENDED, UNABLE) for row in rows)
