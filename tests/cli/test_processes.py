"""``--processes``: the same pictures from several processes, and threads that are shared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ldm.cli import generate
from ldm.cli.processes import share_threads
from tests.helpers.files import names


def command(folder: Path, *argv: str) -> list[str]:
    ours = [sys.executable, "-m", "ldm", "generate", "--model", str(folder), "--dtype", "float32"]
    return [*ours, "--batch-size", "2", *argv]


def test_two_processes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches each, with one seed to count from; prompts also come through a pipe."""
    monkeypatch.chdir(tmp_path)
    texts = "\n".join(f"thing {i}" for i in range(6)).encode()
    # As many threads in each as here: the processor's rounding depends on them.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    argv = ["--prompts", "-", "--steps", "1", "--seed", "3"]
    for output, more in (("one/", []), ("two/", ["--processes", "2"])):
        done = subprocess.run(
            command(folder, *argv, "-o", output, *more),
            input=texts,
            capture_output=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        drawn = [f"{output}{name}" for name in names(Path(output))]
        assert sorted(done.stdout.decode().split()) == drawn
    assert done.stderr.count(b"4 pictures in") == done.stderr.count(b"2 pictures in") == 1
    assert len(names(Path("one"))) == 6
    for name in names(Path("one")):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_a_failure_in_one_of_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a\nb\nc\n")
    argv = ["--prompts", "p.txt", "--processes", "2", "--seed", "1", "-o", "x/", "--steps", "0"]
    assert generate.main(["--model", str(folder), *argv]) == 2  # found before any is started
    assert "--num-inference-steps is 0" in capfd.readouterr().err
    argv = [*argv[:-1], "1", "--clip-skip", "9"]  # which only the model refuses
    assert generate.main(["--model", str(folder), "--batch-size", "1", *argv]) == 1
    assert "2 of 2 processes failed (exit code 1)" in capfd.readouterr().err
    Path("a-1.png").write_text("mine")
    argv = ["--prompts", "p.txt", "--processes", "2", "--seed", "1", "--steps", "1"]
    argv += ["--batch-size", "1"]
    assert generate.main(["--model", str(folder), *argv]) == 1
    assert Path("a-1.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--processes", "0"], "--processes is 0; it must be at least 1"),
        (["--processes", "1000"], "at most 256"),
        (["--processes", "2", "--grid"], "--grid needs all pictures in one process"),
        (["--processes", "2", "--x", "steps=1,2"], "--x needs all pictures in one process"),
        (["--threads", "0"], "--threads is 0; it must be at least 1"),
    ],
)
def test_what_several_cannot_do(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert generate.main(["a", "--model", str(folder), *argv]) == 2
    assert message in capsys.readouterr().err


def test_a_stop_stops_all(folder: Path, tmp_path: Path) -> None:
    Path(tmp_path, "p.txt").write_text("\n".join(f"thing {i}" for i in range(2000)))
    argv = ["--prompts", "p.txt", "--processes", "2", "--seed", "1", "--steps", "1", "-o", "x/"]
    with subprocess.Popen(
        command(folder, *argv),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # A shell's job in the background ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout and process.stdout.readline()  # drawing has begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"stopped" in err
    count = len(list(tmp_path.glob("x/*.png")))
    time.sleep(1)
    assert len(list(tmp_path.glob("x/*"))) == count < 2000  # and no half-written file


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(8)
        share_threads(None)
        assert torch.get_num_threads() == 8
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        share_threads(None)
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's, or accelerate's
        share_threads(None)
        assert torch.get_num_threads() == 2
        share_threads(3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
