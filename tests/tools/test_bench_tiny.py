"""Every section of the benchmark at a tiny size: it runs, and its two outcomes agree."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator

import pytest

from ldm.loading import devices
from tools.bench import __main__ as bench
from tools.bench import peers, processes, scale, serve, sizes
from tools.bench.race import Result

NATIVE = devices.native_bfloat16  # before the tests' own
ALONE = [name for name in bench.SECTIONS if name not in serve.SECTIONS]


@pytest.fixture(autouse=True, scope="module")
def tiny() -> Iterator[None]:
    """With one folder of models for all sections."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(sizes.VARIABLE, "1")
        processes.work.cache_clear()
        yield
    processes.work.cache_clear()


def run(name: str) -> Result:
    given = Namespace(turns=None, debug=True, minutes=1e9, prediction_type="epsilon")
    return bench.measure(name, given, time.perf_counter)


def measure(name: str) -> str:
    """Run a section; return what is wrong with it, or skip it where it says so."""
    result = run(name)
    if result.state == "skipped":
        pytest.skip(result.problems[0])
    assert result.state == "failed" or result.ratio > 0
    return "; ".join(result.problems)


@pytest.mark.parametrize("name", [name for name in ALONE if not name.startswith("compiled")])
def test_a_section(name: str) -> None:
    assert measure(name) == ""


@pytest.mark.slow
def test_compiled() -> None:
    assert measure("compiled-f32-32") == ""


def test_how_cost_grows() -> None:
    """In one test, as its rows share networks."""
    assert {name: problems for name in scale.SECTIONS if (problems := measure(name))} == {}
    scale.loaded.cache_clear()


def test_sections_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one test, as they share a server, which computes as it does for users: so do we."""
    monkeypatch.setattr(devices, "native_bfloat16", NATIVE)
    assert {name: problems for name in serve.SECTIONS if (problems := measure(name))} == {}


def test_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual way, which tiny sections leave out."""
    monkeypatch.delenv(sizes.VARIABLE)
    assert processes.python("-c", "import sys; print(1); print(sys.argv[1])", "a b") == "a b"
    with pytest.raises(bench.LDMError, match="a run failed: ValueError: no such thing"):
        processes.python("-c", "raise ValueError('no such thing')")


def test_a_peer_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that says so, and no failure."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    for name, words in (("openvino", "pip install openvino"), ("compiled", "a C++ compiler")):
        result = run(f"{name}-bf16-64")
        assert result.state == "skipped" and words in result.row(anyway=False)
