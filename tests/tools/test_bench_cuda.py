"""CUDA's table, rehearsed on the CPU: it always ends, and writes what it has."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.bench import cuda, gpu
from tools.bench.processes import ROOT


def test_rows() -> None:
    assert len(set(gpu.ROWS)) == len(gpu.ROWS) == 24
    every = {(row.family, row.batch, row.library, row.mode) for row in gpu.ROWS}
    assert ("XL", 8, "diffusers", "compiled") in every
    assert [row.mode for row in gpu.ROWS].index("compiled") == 16  # what compiles comes last


def process(script: str) -> Any:
    def start(rows: Sequence[int]) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, *map(str, rows)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return start


ROW = """
import json, os, sys, time
for row in map(int, sys.argv[1:]):
    print(json.dumps({"row": row, "began": True}), flush=True)
    if row == 1: BAD
    print("something else", flush=True)
    print(json.dumps({"row": row, "batch": 1}), flush=True)
"""


def test_a_process_that_dies_loses_one_row() -> None:
    found = list(cuda.measured("abcd", process(ROW.replace("BAD", "os._exit(3)")), 60))
    assert [row["row"] for row in found] == [0, 1, 2, 3]
    assert [row.get("problem") for row in found] == [None, "its process died", None, None]


def test_it_ends_in_time() -> None:
    began = time.monotonic()
    found = list(cuda.measured("abcd", process(ROW.replace("BAD", "time.sleep(600)")), 5))
    assert time.monotonic() - began < 30
    assert [row["row"] for row in found] == [0, 1, 2, 3]
    assert [row.get("problem") for row in found] == [None, *[cuda.ENDED] * 3]


def test_what_is_printed() -> None:
    row = {
        "family": "XL", "batch": 1, "library": "ldm", "steps_per_s": 30.0, "picture_s": 1.5,
        "first_picture_s": 2.5, "peak_mb": 9000.0, "share": 0.4, "difference": None,
        "mode": "eager",
    }  # fmt: skip
    assert cuda.line("XL", row) == "| XL | 1 | 30 | 1.5 | 2.5 | 9 | 40% |  |"
    assert "the time was up" in cuda.line("XL", {"row": 1, "problem": cuda.ENDED})
    theirs = row | {"library": "diffusers", "steps_per_s": 20.0}
    rounded = row | {"mode": "fp8", "steps_per_s": 90.0}  # not exact, so in no ratio
    rows = [row, rounded, theirs, theirs | {"steps_per_s": 10.0}, {"problem": "x"}]
    (ratio,) = cuda.ratios(rows)
    assert ratio.startswith("XL, batch 1: 1.50 times")


@pytest.mark.slow
def test_the_rehearsal(tmp_path: Path) -> None:
    """Every row on tiny models: the same step of both libraries, in all modes."""
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "tools.bench", "--device", "cpu", "--rehearse"]
    command += ["--json", str(out), "--budget", "600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == len(gpu.ROWS) and not any("problem" in row for row in rows)
    for row in rows:
        assert row["steps_per_s"] > 0 and row["step_tflop"] > 0 and row["share"] > 0
        assert row["difference"] is None or row["difference"] < 0.03  # of bfloat16's rounding
    assert "of diffusers' best" in done.stdout


def test_one_row_of_each_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "REPEATS", 1)
    both = gpu.Both(gpu.FAMILIES["XL"], torch.device("cpu"), tiny=True)
    for library, mode in (("ldm", "recorded"), ("diffusers", "eager")):
        row = gpu.measure(gpu.Row("XL", library, mode, 1), both, tiny=True)
        assert row["difference"] < 0.03
        assert row["picture_s"] > 0 and row["product_tflops"] > 0


@pytest.mark.cuda
def test_a_recorded_row_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "REPEATS", 1)
    both = gpu.Both(gpu.FAMILIES["SD 1.5"], torch.device("cuda"), tiny=True)
    row = gpu.measure(gpu.Row("SD 1.5", "ldm", "recorded", 1), both, tiny=True)
    assert both.pipe.optimized.graphs.recordings
    assert row["difference"] < 0.03 and row["peak_mb"] > 0
