"""Standard input and output, JSON lines, closed pipes, in processes of their own."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.cli import generate
from ldm.images.generation_info import read_generation_info
from tests.helpers.files import names

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``ldm generate`` with an input → the process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: str, content: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "ldm", "generate", "--model", str(folder), "--steps", "1"]
        return subprocess.run([*command, *argv], input=content, capture_output=True)

    return call


@pytest.fixture
def command(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture,
) -> Callable[..., tuple[int, bytes, str]]:
    """The same in this process, which is sooner → (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: str, content: bytes | None = None) -> tuple[int, bytes, str]:
        stdin = None if content is None else io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr(sys, "stdin", stdin)
        try:
            code = generate.main(["--model", str(folder), "--steps", "1", "--quiet", *argv])
        except SystemExit as stop:
            code = stop.code
        out, err = capsysbinary.readouterr()
        return code, out, err.decode()

    return call


Command = Callable[..., tuple[int, bytes, str]]


def test_a_pipe_from_text_to_picture(run: Run) -> None:
    """``echo "a red car" | ldm generate - -o - > car.png``, and the log has no carriage return."""
    done = run("-", "--seed", "3", "-o", "-", content="a réd car\n".encode())
    assert done.returncode == 0, done.stderr
    assert b"\r" not in done.stderr and b"seed 3" in done.stderr
    Path("car.png").write_bytes(done.stdout)
    assert read_generation_info("car.png").arguments["prompt"] == "a réd car"
    assert run("a réd car", "--seed", "3", "-o", "want.png").stdout == b"want.png\n"
    assert Path("want.png").read_bytes() == done.stdout
    assert names() == ["car.png", "want.png"]


def test_prompts_and_an_image(command: Command, picture: Image.Image) -> None:
    code, out, _ = command("--prompts", "-", "--seed", "1", content=b"a cat\n\n# no\na dog\n")
    assert (code, out.split()) == (0, [b"a-cat-1.png", b"a-dog-2.png"])
    picture.save("start.png")
    content = Path("start.png").read_bytes()
    code, out, _ = command("a", "--image", "-", "--seed", "1", "-o", "a.png", content=content)
    assert code == command("a", "--image", "start.png", "--seed", "1", "-o", "b.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_grid_to_standard_output(command: Command) -> None:
    code, out, _ = command("a", "-b", "4", "--grid", "--no-labels", "-o", "-")
    assert code == 0
    assert Image.open(io.BytesIO(out)).size == (128, 128)
    assert names() == []


@pytest.mark.parametrize(
    ("argv", "content", "code", "message"),
    [
        (["-"], b"", 2, "standard input is empty; the prompt is read from it"),
        (["-"], b" \n", 2, "standard input is empty"),
        (["-"], b"\xff\xfe", 2, "standard input is not UTF-8 text"),
        (["-"], None, 2, "the prompt is -, standard input, which is a terminal"),  # closed
        (["--prompts", "-"], b"", 2, "standard input is empty; --prompts is read from it"),
        (["--prompts", "-"], b"\xff\xfe", 1, "stdin:1: it is not UTF-8 text"),
        (["a", "-i", "-"], b"text", 1, "standard input is no picture that can be read"),
        (["-", "-i", "-"], b"a", 2, "read once, not for the prompt and --image"),
        (["a", "-b", "2", "-o", "-"], None, 2, "writes one picture to stdout, not 2; add --grid"),
        (["a", "--json", "-o", "-"], None, 2, "leave --json out"),
        (["a", "--save-steps", "-o", "-"], None, 2, "leave --save-steps out"),
        (["a", "--processes", "2", "-o", "-"], None, 2, "leave --processes out"),
    ],
)
def test_streams_that_cannot_be_used(
    command: Command, argv: list[str], content: bytes | None, code: int, message: str
) -> None:
    found, out, err = command(*argv, content=content)
    assert (found, err.startswith("error: ")) == (code, True)
    assert message in err
    assert b"PNG" not in out and names() == []


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_terminals(folder: Path, tmp_path: Path, stream: str) -> None:
    ours, theirs = pty.openpty()
    argv = ["-"] if stream == "stdin" else ["a", "-o", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "ldm", "generate", "--model", str(folder), *argv],
        **{stream: theirs},
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        timeout=60,
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert b"is a terminal" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_json_lines(command: Command) -> None:
    code, out, _ = command("a cat", "é", "--seed", "3", "--json", "--save-steps", "--steps", "2")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(row["path"], row["seed"], row["prompt"]) for row in rows] == [
        ("a-cat-3.png", 3, "a cat"),
        ("é-4.png", 4, "é"),
    ]
    assert all(Path(row["path"]).is_file() and 0 < row["seconds"] < 60 for row in rows)
    assert rows[0]["files"] == {"steps": "a-cat-3-steps.png"}
    assert rows[0]["settings"]["arguments"]["num_inference_steps"] == 2


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["a", "--json", "-o", "no/a.png"], 1, "no is not a folder"),
        (["a", "--json", "--seed", "x"], 2, "invalid int value: 'x'"),
        (["a", "--json", "-g", "nan"], 2, "guidance_scale is nan"),
        (["--json"], 2, "there is no prompt"),
    ],
)
def test_failures_in_json(command: Command, argv: list[str], code: int, message: str) -> None:
    found, out, err = command(*argv)
    (row,) = [json.loads(line) for line in out.splitlines()]
    assert found == row["code"] == code
    assert message in row["error"] and message in err


def test_bad_lines_in_json(command: Command) -> None:
    content = b'{"prompt": "a"}\n{"prompt": "b", "seed": "x"}\n'
    code, out, _ = command("--prompts", "-", "--json", "--seed", "1", content=content)
    bad, good, end = [json.loads(line) for line in out.splitlines()]
    assert code == end["code"] == 1
    assert bad["error"].startswith("stdin:2: ") and good["path"] == "a-1.png"


def test_a_reader_that_goes_away(folder: Path, tmp_path: Path) -> None:
    """``ldm generate … | head -1`` stops after the next picture, without a word."""
    texts = "\n".join(f"thing {i}" for i in range(9))
    command = [sys.executable, "-m", "ldm", "generate", "--prompts", "-", "--model", str(folder)]
    command += ["--steps", "1", "--batch-size", "1", "--seed", "1", "--quiet"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(texts.encode())
        process.stdin.close()
        assert process.stdout.readline() == b"thing-0-1.png\n"
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""
    assert 2 <= len(list(tmp_path.glob("thing-*.png"))) <= 9


def test_progress_in_a_log_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ldm.cli import progress

    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.showing(4, quiet=False) as show:
        for step in range(5):
            show(step)
    assert [line.split(",")[0] for line in capsys.readouterr().err.split("\n")] == [
        *("step 1 of 4", "step 2 of 4", "step 3 of 4"),
        "",
    ]


def test_the_same_picture_to_both(command: Command) -> None:
    """Nothing is lost on the way through a pipe."""
    _, out, _ = command("a", "--seed", "1", "-o", "-")
    command("a", "--seed", "1", "-o", "a.png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(out))), np.asarray(Image.open("a.png")))
