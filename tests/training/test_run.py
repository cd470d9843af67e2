"""A run's folder: exact resume, kills and full disks, two runs at once, changed settings, NaN."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.checkpoints.tensors import write_tensors
from ldm.errors import ArgumentError, CheckpointError, TrainingError
from ldm.training import checkpoint
from ldm.training.checkpoint import Learner, checkpoints, load_state, save_state
from ldm.training.config import check_resumable
from ldm.training.ema import EMA
from ldm.training.lock import only_run_in
from ldm.training.loop import train_steps
from ldm.training.optimizer import build_optimizer
from tests.helpers import toy_training
from tests.helpers.optimizers import OPTIMIZERS, settings_of
from tests.helpers.toy_training import Toy, toy_config, toy_run

TOY = Path(__file__).parents[1] / "helpers" / "toy_training.py"


pytestmark = pytest.mark.filterwarnings("ignore:the run goes on with other settings")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def state_of(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint."""
    folder = checkpoints(run)[-1]
    return {
        f"{file}/{key}": value
        for file in ("model", "ema", "optimizer")
        for key, value in load_file(folder / f"{file}.safetensors").items()
    }


def assert_same_state(a: Path, b: Path) -> None:
    ours, theirs = state_of(a), state_of(b)
    assert ours.keys() == theirs.keys()
    assert len([key for key in ours if key.startswith("optimizer/")]) >= 4
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype and torch.equal(value, theirs[key]), key


def launch(output: Path, *settings: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(TOY.parents[2])}
    command = [sys.executable, str(TOY), str(output), *settings]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Any, process: subprocess.Popen, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """SIGKILL in another process, at whatever it was doing; then on to the end. Bit for bit.

    Muon keeps both kinds of moments: its own for the matrices, AdamW's for the rest.
    """
    settings = {"steps": 300, "optimizer": "muon", "log_every": 30}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    text = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    process = launch(killed, *text, "checkpoint_minutes=0")
    wait_for(lambda: len(checkpoints(killed)) > 1, process)
    # While it lives, nobody else may write there.
    with pytest.raises(TrainingError, match=f"another run works in .*process {process.pid} on"):
        toy_run(toy_config(killed, **settings))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    done = int(checkpoints(killed)[-1].name)
    assert 0 < done < 300
    assert str(process.pid) in (killed / "lock").read_text()  # stale, which stops nobody
    with pytest.warns(UserWarning, match="checkpoint_minutes was 0, now 1000000000.0"):
        toy_run(toy_config(killed, **settings))
    toy_run(toy_config(whole, **settings))
    assert_same_state(killed, whole)
    assert torch.equal(*(load_file(p / "toy.safetensors")["0.weight"] for p in (whole, killed)))
    # The log has each step once, however often it was done.
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(30, 301, 30))


class Killed(BaseException):
    """Nothing may catch it, as nothing catches SIGKILL."""


def test_a_kill_at_any_moment_of_writing_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that touches the disk is cut off in its middle, in turn."""
    learner = new_learner()
    for step in (1, 2):
        save_state(tmp_path / "before", step, 0.0, learner)
    countdown = 0

    def deadly(name: str, call: Any, half: Any) -> Any:
        def patched(*arguments: Any, **more: Any) -> Any:
            nonlocal countdown
            countdown -= 1
            if countdown < 0:
                half(*arguments)
                raise Killed(name)
            return call(*arguments, **more)

        return patched

    def nothing(*arguments: Any) -> None: ...

    def half_a_file(values: Any, path: Path, *rest: Any) -> None:
        path.write_bytes(b"\x40" * 50)  # worse than it writes, which is beside the file first

    def half_deleted(path: Path, *rest: Any) -> None:
        next(iter(path.iterdir())).unlink()

    moments = 0
    for moment in range(100):
        run = tmp_path / f"kill{moment}"
        shutil.copytree(tmp_path / "before", run)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_tensors", deadly("write", write_tensors, half_a_file))
            patch.setattr(os, "fsync", deadly("fsync", os.fsync, nothing))
            patch.setattr(Path, "mkdir", deadly("mkdir", Path.mkdir, nothing))
            patch.setattr(Path, "rename", deadly("rename", Path.rename, nothing))
            patch.setattr(os, "replace", deadly("replace", os.replace, nothing))
            patch.setattr(shutil, "rmtree", deadly("rmtree", shutil.rmtree, half_deleted))
            countdown = moment
            try:
                save_state(run, 3, 0.0, learner)
            except Killed:
                moments += 1
                killed = True
            else:
                killed = False
        step, _ = load_state(run, new_learner())
        assert step in (2, 3)
        assert len(checkpoints(run)) >= 2  # the one before is there, too
        for folder in checkpoints(run):
            assert len(load_file(folder / "optimizer.safetensors")) > 4
        save_state(run, 4, 0.0, learner)  # and the next one clears up
        assert [path.name for path in (run / "checkpoints").iterdir()].count("00000004") == 1
        assert not list((run / "checkpoints").glob("*.partial"))
        if not killed:
            break
    assert moments > 10


def new_learner() -> Learner:
    config = toy_config(Path())
    torch.manual_seed(0)
    model = Toy(config).model
    optimizer = build_optimizer(model, config)
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    return Learner(model, EMA(model, 0.9), optimizer)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    toy_run(toy_config(run, steps=2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))  # bytes a file: less than the moments
    try:
        with pytest.raises(TrainingError, match=r"step 3 cannot be written .*00000002 is complete"):
            learner = new_learner()
            save_state(run, 3, 0.0, learner)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000002"]
    assert len(toy_run(toy_config(run, steps=4))) == 2


def test_a_full_disk_while_the_model_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    toy_run(toy_config(run, steps=2))

    def full(self: Toy, model: Any, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Toy, "save", full)
    with pytest.raises(TrainingError, match=r"No space left.*00000002 is complete"):
        toy_run(toy_config(run, steps=4))


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    with only_run_in(tmp_path), pytest.raises(TrainingError), only_run_in(tmp_path):
        pass
    with only_run_in(tmp_path):
        pass


def test_resuming_with_other_settings(tmp_path: Path) -> None:
    run = tmp_path / "run"
    toy_run(toy_config(run, steps=2))
    with pytest.raises(ArgumentError) as refused:
        toy_run(toy_config(run, batch_size=4, options={"dropout": 0.5}, seed=0))
    for told in ("batch_size was 8, now 4", "options.dropout was not there, now 0.5", "--accept"):
        assert told in str(refused.value)
    assert "seed" not in str(refused.value)
    with pytest.warns(UserWarning, match="steps was 2, now 3"):
        assert len(toy_run(toy_config(run, steps=3))) == 1
    with pytest.warns(UserWarning, match="batch_size was 8, now 4"):
        assert len(toy_run(toy_config(run, steps=4, batch_size=4), accept_changes=True)) == 1
    assert json.loads((run / "config.json").read_text())["batch_size"] == 4


def test_a_run_of_an_older_version_has_the_defaults_of_new_settings(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    old = {"recipe": "toy", "data": "", "output": "elsewhere", "steps": 8, "batch_size": 8}
    old |= {"learning_rate": 1e-2, "warmup": 2, "mixed_precision": "no", "log_every": 1}
    assert check_resumable(old, config).keys() == {"output"}


@pytest.mark.parametrize("log_every", [1, 100])
def test_not_a_number_stops_the_run_and_is_not_saved(tmp_path: Path, log_every: int) -> None:
    run = tmp_path / "run"
    config = toy_config(run, steps=20, log_every=log_every, options={"nan_at": 6})
    saved = toy_config(run, steps=5, log_every=log_every, options={"nan_at": 6})
    toy_run(saved)
    with pytest.raises(TrainingError, match="not finite at step 7; lower learning_rate"):
        toy_run(config)
    assert [path.name for path in checkpoints(run)] == ["00000005"]
    assert load_file(run / "toy.safetensors")["0.weight"].isfinite().all()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """The last update overflows: no loss or gradient has told."""
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"0\.weight is not finite after step 1"):
        toy_run(toy_config(run, steps=1, learning_rate=1e38, weight_decay=1e3))
    assert not checkpoints(run) and not (run / "toy.safetensors").exists()


def files_of(run: Path) -> dict[Path, bytes]:
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "lock"]
    return {path: path.read_bytes() for path in files}


def test_a_finished_run_says_so_and_fewer_steps_are_refused(tmp_path: Path) -> None:
    """Nothing in the folder changes, whatever else the caller accepts."""
    run = tmp_path / "run"
    toy_run(toy_config(run, steps=3))
    before = files_of(run)
    with pytest.warns(UserWarning, match=r"run is finished: 3 of 3 steps are done; .* more steps"):
        assert toy_run(toy_config(run, steps=3)) == []
    for accept in (False, True):
        with pytest.raises(ArgumentError, match=r"steps is 2, but the run in .* has done 3; give"):
            toy_run(toy_config(run, steps=2), accept_changes=accept)
    with pytest.raises(ArgumentError, match="holds a run with other settings: seed"):
        toy_run(toy_config(run, steps=3, seed=9))
    assert files_of(run) == before
    assert len(toy_run(toy_config(run, steps=5))) == 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_its_caller_stops_and_resumes(
    tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_training, "WIDTH", 70)  # 4,900 weights: enough for moments of 8 bits
    whole, stopped = (
        toy_config(tmp_path / name, **settings_of(optimizer)) for name in ("whole", "stopped")
    )
    toy_run(whole)
    torch.manual_seed(stopped.seed)
    for state in train_steps(stopped, Toy(stopped)):
        state.stop = state.step == 3
    assert [path.name for path in checkpoints(tmp_path / "stopped")] == ["00000003"]
    torch.rand(7)  # whoever draws in between changes nothing
    assert len(toy_run(stopped)) == 5
    assert_same_state(tmp_path / "stopped", tmp_path / "whole")


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    toy_run(toy_config(run, steps=2))
    file = checkpoints(run)[-1] / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"0.weight": torch.zeros(3, 8)}, file)
    with pytest.raises(CheckpointError, match=r"0.weight is \(3, 8\), here \(24, 8\)"):
        toy_run(toy_config(run))
    del tensors["0.bias"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"0\.bias is missing"):
        toy_run(toy_config(run))


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    runs = {}
    for parts in (1, 4):
        config = toy_config(
            tmp_path / str(parts), gradient_accumulation_steps=parts, options={"dropout": 0.0}
        )
        runs[parts] = toy_run(config)
    assert runs[4] == pytest.approx(runs[1], rel=1e-5)
    a, b = (state_of(tmp_path / name)["model/0.weight"] for name in ("1", "4"))
    assert (a - b).abs().max() < 1e-5
    with pytest.raises(TrainingError, match=r"batch of 8 .* 1 processes with 3 parts"):
        toy_run(toy_config(tmp_path / "3", gradient_accumulation_steps=3))


def test_compile_is_asked_for_once_and_changes_no_result(tmp_path: Path, monkeypatch) -> None:
    compiled = []

    def compile(module: torch.nn.Module) -> None:  # the real one takes minutes
        compiled.append(module)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    toy_run(toy_config(tmp_path / "plain"))
    assert not compiled
    toy_run(toy_config(tmp_path / "compiled", compile=True))
    assert len(compiled) == 1
    assert_same_state(tmp_path / "plain", tmp_path / "compiled")


def test_pictures_and_trackers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    config = toy_config(run, steps=30, sample_every=10, trackers=("tensorboard",))
    recipe = Toy(config)
    losses = [state.metrics["loss"] for state in train_steps(config, recipe)]
    assert recipe.drawn == [run / "figures"] * 3
    assert [path.name for path in sorted((run / "samples").iterdir())] == [
        "00000010.png",
        "00000020.png",
        "00000030.png",
    ]
    with Image.open(run / "curves.png") as image:
        assert image.size[0] > 900  # three panels, of which one is the held-out error
        assert len(image.convert("L").getcolors(256)) > 50
    events = EventAccumulator(str(run / "trackers" / "ldm"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)


def test_unknown_and_missing_trackers(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="did you mean 'tensorboard'"):
        toy_run(toy_config(tmp_path, trackers=("tensorbord",)))
    with pytest.raises(ArgumentError, match="'clearml', which is not installed"):
        toy_run(toy_config(tmp_path, trackers=("clearml",)))


def test_half_precision_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="mixed_precision is 'fp16'"):
        toy_run(toy_config(tmp_path, mixed_precision="fp16"))
