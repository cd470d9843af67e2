"""The benchmark's own rules: outcomes first, turns, the median of their ratios, refusals."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from ldm.errors import LDMError
from tools.bench import __main__ as bench
from tools.bench import samplers
from tools.bench.race import PATIENCE, Race, run


@pytest.fixture(autouse=True)
def without_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes long among all that other tests have made."""
    monkeypatch.setattr("gc.collect", lambda: 0)


class Clock:
    """Time that passes only when an action says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def action(self, name: str, *seconds: float) -> Any:
        left = list(seconds)

        def act() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return act


def race(clock: Clock, ours: Any, theirs: Any, difference: float = 0.0, **more: Any) -> Race:
    def check() -> tuple[float, float]:
        clock.log.append("check")
        return difference, 0.1

    return Race("a thing", ours, theirs, check, 2.0, **more)


def test_turns_and_the_median_of_their_ratios() -> None:
    clock = Clock()
    ours, theirs = clock.action("A", 9, 2.0, 1.0, 1.25), clock.action("B", 90, 6.0, 2.9, 3.875)
    result = run("name", race(clock, ours, theirs), clock=clock)
    assert clock.log == ["check", *"ABABABAB"]
    assert (result.ours, result.theirs) == pytest.approx((1.25, 3.875))
    assert result.least == pytest.approx((1.0, 2.9))
    assert result.ratio == pytest.approx(3)  # of 3, 2.9 and 3.1; of the least, it would be 2.9
    assert result.spread == pytest.approx(0.1 / 3)
    assert result.problems == []
    assert "**3.00** | 2: yes | 3%; least 1 and 2.9, difference 0 |" in result.row(anyway=False)


def test_several_runs_a_turn() -> None:
    clock = Clock()
    ours = clock.action("A", 9, 9, 1.05, 1.0, 1.3, 1.01, 1.02, 7)
    theirs = clock.action("B", 90, 9, 3.0, 3.5, 3.7, 3.1, 3.05, 4)
    result = run("name", race(clock, ours, theirs, runs=2), clock=clock)
    assert clock.log == ["check", *"AABBAABBAABBAABB"]
    assert (result.ours, result.theirs) == pytest.approx((1.01, 3.05))


@pytest.mark.parametrize("prediction_type", samplers.PREDICTIONS)
def test_samplers_do_the_same_work(prediction_type: str) -> None:
    for name in ("dpmpp_2m", "euler", "ddim"):
        section = samplers.sampler(name, prediction_type)
        difference, allowed = section.check()
        assert difference <= 1e-5 < allowed
        assert ("Karras" in section.what) is (name != "ddim")


def test_a_prediction_that_theirs_does_not_know() -> None:
    with pytest.raises(LDMError, match="diffusers' PNDMScheduler: prediction_type given as sample"):
        samplers.sampler("pndm", "sample").check()


@pytest.mark.parametrize("difference", [0.2, math.nan])
def test_other_outcomes_are_refused(difference: float) -> None:
    clock = Clock()
    result = run("name", race(clock, clock.action("A", 1), clock.action("B", 1), difference))
    assert "the outcomes differ" in result.problems[0]
    assert "**" not in result.row(anyway=False)
    assert "**no**" in result.row(anyway=True)


def test_a_wide_spread_is_refused() -> None:
    clock = Clock()
    ours = clock.action("A", 1, *[1.0, 1.3, 0.7] * 99)
    result = run("name", race(clock, ours, clock.action("B", 1)), clock=clock)
    assert result.problems == ["half of the turns' ratios lie 23% or more from their median"]
    assert PATIENCE < clock.now < PATIENCE + 4


def test_a_disturbance_is_waited_out() -> None:
    clock = Clock()
    ours = clock.action("A", 9, 1.0, 7.0, 1.3, 1.04, 1.05, 1.02)
    result = run("name", race(clock, ours, clock.action("B", 3)), clock=clock)
    assert clock.log.count("A") == 6
    assert result.problems == []


def test_measured_actions() -> None:
    sizes = iter([5, 10, 4.2, 10, 4, 10, 4.1, 11])
    clock = Clock()
    act = lambda: next(sizes)  # noqa: E731
    result = run("name", race(clock, act, act, measured=True))
    assert (result.ours, result.theirs) == (4.1, 10)


@pytest.mark.parametrize("load", [0.1, 2.0])
def test_command(
    load: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def section() -> Race:
        clock = Clock()
        return race(clock, lambda: 1.0, lambda: 3.0, measured=True)

    monkeypatch.setattr(bench, "SECTIONS", {"one": section, "two": section})
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr("os.environ", dict(bench.os.environ))
    out = tmp_path / "runs" / "bench.json"
    argv = ["bench", "--only", "two", "--json", str(out), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    threads = bench.torch.get_num_threads()
    try:
        code = bench.main()
        assert code == (1 if load > bench.IDLE else 0)
        printed = capsys.readouterr()
        assert ("**3.00**" in printed.out) is (code == 0)
        assert "| one |" not in printed.out
        if code:
            assert "refused: two; --anyway" in printed.err
            monkeypatch.setattr(sys, "argv", [*argv, "--anyway"])
            assert bench.main() == 0
            assert "**3.00**" in capsys.readouterr().out
    finally:
        bench.torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    assert report["machine"]["torch"] == bench.torch.__version__
    assert {"processor", "load", "git", "diffusers"} <= set(report["machine"])
    assert report["results"][0]["ratio"] == pytest.approx(3)


def test_a_section_that_fails_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def good() -> Race:
        return race(Clock(), lambda: 1.0, lambda: 3.0, measured=True)

    def bad() -> Race:
        raise ValueError("four channels for\neight")

    monkeypatch.setattr(bench, "SECTIONS", {"bad": bad, "good": good})
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0, 0))
    monkeypatch.setattr("os.environ", dict(bench.os.environ))
    out = tmp_path / "bench.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(out), "--threads", "1", "--anyway"])
    threads = bench.torch.get_num_threads()
    try:
        assert bench.main() == 1
    finally:
        bench.torch.set_num_threads(threads)
    printed = capsys.readouterr()
    assert "failed: four channels for eight" in printed.out and "**3.00**" in printed.out
    assert "failed: bad; the table has the reasons" in printed.err
    report = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert [result["name"] for result in report["results"]] == ["bad", "good"]
    assert len(report["machine"]["product_gflops"]) == 2
