"""Full disks and SIGTERM: one clear line, nothing half-written, what was there before unchanged."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoints.gguf_writer import write_gguf
from ldm.checkpoints.tensors import write_tensors
from ldm.cli import convert, generate, train
from ldm.errors import CheckpointError
from ldm.pipeline import Pipeline
from tests.helpers.files import names

ROOT = Path(__file__).parents[2]
SPACE = 250_000  # bytes: less than the small model has, more than its configs
Full = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def limited(size: int = SPACE) -> Iterator[None]:
    """No file may be longer: a write stops where it is, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["disk", "limit"])
def full(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Full]:
    """An empty current folder, and what fills it up: a small file system, or a limit."""
    place = tmp_path / "place"
    place.mkdir()
    if request.param == "limit":
        monkeypatch.chdir(place)
        yield limited
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root may not mount a file system here")

    @contextlib.contextmanager
    def filled() -> Iterator[None]:
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        Path("filler").write_bytes(bytes(free - SPACE))
        yield
        Path("filler").unlink()

    try:
        monkeypatch.chdir(place)
        yield filled
    finally:
        monkeypatch.chdir(tmp_path)
        subprocess.run(["umount", str(place)], check=True)


def tree() -> dict[str, bytes]:
    """All files, also hidden ones; of folders only those with files."""
    return {
        str(path): path.read_bytes()
        for path in Path().rglob("*")
        if path.is_file() and path.name != "filler"
    }


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    (line,) = (line for line in err.splitlines() if not line.startswith("warning: "))
    assert out == "" and line.startswith("error: ") and ".ldm-" not in line, line
    return line


REASONS = ("No space left on device", "File too large", "requested and .* written")


def test_generate(full: Full, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The picture would fit, its many steps do not."""
    Image.new("RGB", (9, 9)).save("a.png")
    before = tree()
    argv = ["a", "--model", str(folder), "--steps", "1", "-o", "a.png", "--force", "--quiet"]
    large = ["-W", "512", "-H", "512"]  # of a random model, hardly compressed
    with full():
        assert generate.main([*argv, *large]) == 1
        error = one_line(capsys)
        assert "cannot write a.png" in error and any(reason in error for reason in REASONS)
        assert tree() == before and {*names()} <= {"a.png", "filler"}
    assert generate.main([*argv, *large]) == 0


@pytest.mark.parametrize("output", ["new", "old"])
def test_convert(full: Full, output: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if output == "old":
        Path("old").mkdir()
        Path("old", "model_index.json").write_text("{}")
    before = tree()
    argv = [str(folder), output, "--force"]
    with full():
        assert convert.main(argv) == 1
        error = one_line(capsys)
        assert f"{output} cannot be written (" in error and "free some space" in error
        assert any(reason in error for reason in REASONS)
        assert tree() == before and {*names()} <= {"old", "filler"}
    assert convert.main(argv) == 0
    Pipeline.from_pretrained(output, device="cpu")
    assert names() == [output]


@pytest.mark.parametrize("name", ["old.safetensors", "old.gguf"])
def test_a_single_file(full: Full, name: str) -> None:
    path = Path(name)
    path.write_text("old")
    tensors = {f"{i}.weight": torch.ones(64, 256) for i in range(8)}

    def write() -> None:
        if name.endswith("gguf"):
            write_gguf(tensors, path, torch.float32, "sd1", {})
        else:
            write_tensors(tensors, path)

    with full():
        with pytest.raises(OSError, match="|".join(REASONS)) as caught:
            write()
        assert name in str(caught.value) and ".ldm-" not in str(caught.value)
        assert path.read_text() == "old" and {*names()} <= {name, "filler"}
    write()
    assert path.stat().st_size > 2 * SPACE and names() == [name]


def test_save_pretrained(full: Full, folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    Path("model").mkdir()
    for name in ("README.md", "model_index.json"):
        Path("model", name).write_text("old")
    before = tree()
    for output in ("model", "new"):
        with full():
            message = f"cannot write {output}: ({'|'.join(REASONS)})"
            with pytest.raises(CheckpointError, match=message):
                pipe.save_pretrained(output)
            assert tree() == before and {*names()} <= {"model", "filler"}
    pipe.save_pretrained("model")
    assert Path("model", "README.md").read_text() == "old"
    Pipeline.from_pretrained("model", device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_train(full: Full, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run resumes from its last whole checkpoint when there is space again."""
    config = {
        "recipe": '"autoencoder"',
        "data": f'"{data}"',
        "output": '"run"',
        "batch_size": 2,
        "mixed_precision": '"no"',
        "sample_every": 1000,
        "checkpoint_minutes": 1e9,
    }
    (tmp_path / "c.toml").write_text("\n".join(f"{key} = {value}" for key, value in config.items()))
    with (tmp_path / "c.toml").open("a") as file:
        file.write("\n[model]\nblock_out_channels = [16, 32]\nlayers_per_block = 1\n")
        file.write("norm_num_groups = 4\nlatent_channels = 4\nsample_size = 16\n")
        file.write("[options]\nkl_weight = 1e-4\ngradient_weight = 0.0\nadversarial_weight = 0.0\n")
        file.write("phases = [{ until = 1.0, size = 16, batch_size = 2 }]\n")
    argv = ["--config", str(tmp_path / "c.toml"), "--quiet", "--set", "learning_rate=1e-3"]
    assert train.main([*argv, "--set", "steps=1"]) == 0, capsys.readouterr().err
    before = {name: content for name, content in tree().items() if "safetensors" in name}
    capsys.readouterr()
    with full():
        assert train.main([*argv, "--set", "steps=2"]) == 1
        error = one_line(capsys)
        assert "step 2 cannot be written to run" in error and "00000001 is complete" in error
        after = tree()
        assert {name: after[name] for name in before} == before
        assert not [name for name in after if ".ldm-" in name or ".partial" in name]
    assert train.main([*argv, "--set", "steps=2"]) == 0
    assert names(Path("run", "checkpoints")) == ["00000001", "00000002"]
    assert json.loads(Path("run/config.json").read_text())["steps"] == 2


@pytest.mark.parametrize("output", ["new", "old"])
def test_sigterm_during_convert(folder: Path, tmp_path: Path, output: str) -> None:
    """As ``kill PID`` sends it, while weights are written."""
    code = f"""
import os, signal, sys
from ldm.cli.convert import main
from ldm.checkpoints import tensors
def save_file(content, path, metadata):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGTERM)
tensors.save_file = save_file
sys.exit(main([{str(folder)!r}, {output!r}, "--force"]))
"""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model_index.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "stopped\n")
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == ["model_index.json"]
