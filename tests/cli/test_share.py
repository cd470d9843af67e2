"""Many pictures: shared among processes, and going on after a stop; always the same pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm.cli import generate


@pytest.fixture(autouse=True)
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(f"thing {i}" for i in range(7)))


def run(folder: Path, *options: str) -> int:
    command = ["--prompts", "prompts.txt", "--model", str(folder), "--steps", "1", "--quiet"]
    # The default of another process may be another one.
    return generate.main([*command, "--dtype", "float32", "--batch-size", "2", *options])


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path().glob("*.png")}


@pytest.fixture
def whole(folder: Path) -> dict[str, bytes]:
    """What one process draws at once."""
    assert run(folder, "--seed", "3") == 0
    drawn = files()
    for name in drawn:
        Path(name).unlink()
    assert len(drawn) == 7
    return drawn


def test_processes_share_the_pictures(
    folder: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    counts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert run(folder, "--seed", "3") == 0
        counts.append(len(files()))
    assert counts == [3, 5, 7]  # of four batches
    assert files() == whole


def test_a_stopped_run_goes_on(folder: Path, whole: dict[str, bytes]) -> None:
    for name in sorted(whole)[:4]:
        Path(name).write_bytes(whole[name] + b"mine")
    assert run(folder, "--seed", "3", "--skip-existing") == 0
    kept = {name: whole[name] + b"mine" * (i < 4) for i, name in enumerate(sorted(whole))}
    assert files() == kept
    assert run(folder, "--seed", "3", "--skip-existing") == 0
    assert files() == kept
    assert run(folder, "--seed", "3") == 0  # without it, nothing is overwritten
    assert len(files()) == 14
    assert {name: content for name, content in files().items() if name in kept} == kept


@pytest.mark.parametrize("options", [[], ["--seed", "3", "--force"], ["--force"]])
def test_skipping_needs_a_seed(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--skip-existing", *options) == 2
    assert "--skip-existing needs a --seed" in capsys.readouterr().err


def test_processes_need_a_seed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(folder) == 2
    assert "several processes need one --seed" in capsys.readouterr().err
    one = ["a", "b", "--model", str(folder), "--grid", "--seed", "1"]
    assert generate.main(one) == 2
    assert "--grid needs all pictures in one process" in capsys.readouterr().err


def test_accelerate_launches_it(folder: Path, whole: dict[str, bytes]) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["-m", "ldm.cli.generate", "--prompts", "prompts.txt", "--model", str(folder)]
    command += ["--steps", "1", "--seed", "3", "--batch-size", "2", "--dtype", "float32"]
    # Of as many threads as here: the processor's rounding depends on them.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | threads
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert files() == whole
