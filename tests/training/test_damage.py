"""Damaged runs: what is named, what still works; the log over interruptions; leftovers."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.errors import ArgumentError, CheckpointError, LDMError, TrainingError
from ldm.training.checkpoint import checkpoints
from ldm.training.config import TrainConfig
from ldm.training.curves import draw_curves
from ldm.training.data import EmbeddedTexts, open_data
from ldm.training.loop import train_steps
from ldm.training.metrics import MOST_LINE, cut_log, read_log
from ldm.training.recipes import build_recipe
from ldm.writing import part_folder
from ldm.writing import parts as parts_module
from tests.fuzz.gate import limits
from tests.helpers.toy_training import Toy, toy_config, toy_run

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in ("the run goes on with other", "curves")
]
LOG = {"steps": 14, "log_every": 4, "sample_every": 100}
TIMES = ("seconds", "steps_per_second")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither curves nor the collection of garbage at the end, which take a second."""
    monkeypatch.setattr("ldm.training.loop.draw_curves", lambda run: None)
    monkeypatch.setattr("ldm.training.loop.gc.collect", lambda: None)


def train(run: Path, stop: int = 10**9, **changes: Any) -> None:
    config = toy_config(run, **(LOG | changes))
    torch.manual_seed(0)
    for state in train_steps(config, Toy(config)):
        state.stop = state.step == stop


def rows(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMES}
        for line in (run / "metrics.jsonl").open()
    ]


@pytest.mark.parametrize("stops", [[1], [3], [4], [5], [2, 3, 9], [6, 7, 13]])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_log_of_a_resumed_run_is_that_of_one_without_a_stop(
    tmp_path: Path, stops: list[int], parts: int
) -> None:
    """Each row averages its steps, also those before the stop: bit by bit."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole, gradient_accumulation_steps=parts)
    for stop in [*stops, 10**9]:
        train(stopped, stop, gradient_accumulation_steps=parts)
    assert rows(stopped) == rows(whole)
    assert [row["step"] for row in rows(whole)] == [4, 8, 12, 14]


def test_a_kill_behind_a_checkpoint_repeats_the_rows_behind_it(tmp_path: Path) -> None:
    """The rows since the checkpoint are cut, and averaged again from its sums."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole)
    train(killed, 6)
    saved = tmp_path / "saved"
    shutil.copytree(killed / "checkpoints", saved)
    train(killed, 11)
    shutil.rmtree(killed / "checkpoints")
    saved.rename(killed / "checkpoints")
    train(killed)
    assert rows(killed) == rows(whole)


def test_a_checkpoint_of_an_older_version_has_no_sums(tmp_path: Path) -> None:
    train(tmp_path, 6)
    path = checkpoints(tmp_path)[-1] / "state.json"
    state = json.loads(path.read_text())
    del state["metrics"]
    path.write_text(json.dumps(state))
    train(tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [4, 8, 12, 14]


GOOD = [b'{"step": 1, "loss": 2.0}', b'{"step": 2,   "loss": Infinity, "x": 3}', b'{"step": 3}']
BAD = [
    *(b"", b"{", b"null", b"[]", b'{"loss": 1}', b'{"step": "2"}', b'{"step": true}', b"\xff\x00"),
    *(b'{"step": 1.5}', b'{"step": NaN}', b'{"step": -1}', b'{"step": 1, "loss": [1]}'),
    *(b'{"step": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"step": 1, "loss": "\\ud800"}'),
    b'{"step": 1, "loss": null}',
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("place", range(4))
def test_a_damaged_line_of_a_log_is_left_out(tmp_path: Path, bad: bytes, place: int) -> None:
    """The others stay as they are, to the letter."""
    lines = [*GOOD[:place], bad, *GOOD[place:]]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.warns(UserWarning, match=rf"1 damaged lines are left out .*\(line {place + 1}\)"):
        cut_log(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(g + b"\n" for g in GOOD[:2])
    assert len(read_log(tmp_path)) == 2


def test_a_log_with_damaged_lines_stops_no_run(tmp_path: Path) -> None:
    train(tmp_path, 9)
    log = tmp_path / "metrics.jsonl"
    kept = log.read_bytes()
    log.write_bytes(b"\x00\xff damaged\n" + kept + b'{"step": 9, "lo')
    with pytest.warns(UserWarning, match=r"2 damaged lines .*\(line 1, 4\); the other lines are"):
        train(tmp_path)
    assert log.read_bytes().startswith(kept)
    assert [row["step"] for row in rows(tmp_path)] == [4, 8, 12, 14]


def test_a_log_of_any_size_and_kind(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    with log.open("wb") as file:
        file.truncate(3 * MOST_LINE)  # one line
    with limits(10, 1 << 28), pytest.warns(UserWarning, match="3 damaged lines"):
        cut_log(tmp_path, 1)
    log.unlink()
    os.mkfifo(log)
    with limits(5), pytest.raises(TrainingError, match=r"metrics\.jsonl cannot be read .*pipe"):
        cut_log(tmp_path, 1)


def test_curves_of_strange_figures(tmp_path: Path) -> None:
    strange = [b'{"step": 1, "a": 1e308, "b": NaN}', b'{"step": 2, "a": -1e308, "c": Infinity}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(strange))
    draw_curves(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "a": 1, "b": NaN}\n{"step": 2, "a": 2}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves(tmp_path)
    assert (tmp_path / "curves.png").exists()


# --- Damaged checkpoints ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("two")
    train(run, 3)
    train(run, 5)
    return run


FILES = ["state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors"]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [half, zeros, Path.unlink, pipe, folder])
def test_a_damaged_part_is_named_with_what_still_works(
    tmp_path: Path, two: Path, name: str, harm: Any
) -> None:
    run = tmp_path / "a run"
    shutil.copytree(two, run)
    older, newest = checkpoints(run)
    harm(newest / name)
    with limits(10), pytest.raises(CheckpointError) as refused:
        train(run)
    message = str(refused.value)
    assert str(newest / name) in message
    assert f"{older} is whole: to go on from step 3" in message
    assert f"rm -r '{newest}'" in message and "run the same command" in message
    shutil.rmtree(newest)
    train(run)
    assert [row["step"] for row in rows(run)] == [4, 8, 12, 14]


def test_when_no_checkpoint_is_whole(tmp_path: Path, two: Path) -> None:
    shutil.copytree(two, tmp_path / "run")
    older, newest = checkpoints(tmp_path / "run")
    half(older / "ema.safetensors")
    half(newest / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"no other checkpoint is whole: remove that folder to"
    ):
        train(tmp_path / "run")
    component = tmp_path / "run" / "unet"
    component.mkdir()
    save_file({"a": torch.ones(1)}, component / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=rf"to begin with: --set start={component}"):
        train(tmp_path / "run")
    (tmp_path / "run" / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="averaged model is there: ldm generate --model"):
        train(tmp_path / "run")


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
def test_numbers_that_are_none_are_found_when_a_run_goes_on(
    tmp_path: Path, two: Path, name: str
) -> None:
    shutil.copytree(two, tmp_path / "run")
    path = checkpoints(tmp_path / "run")[-1] / f"{name}.safetensors"
    tensors = load_file(path)
    key = next(key for key, value in tensors.items() if value.ndim == 2)
    changed = tensors[key].clone()
    changed[0, 0] = torch.nan
    save_file(tensors | {key: changed}, path)
    with pytest.raises(CheckpointError, match=f"{name}.*{key} is not finite"):
        train(tmp_path / "run")
    if name != "optimizer":
        save_file(tensors | {key: tensors[key].to(torch.int32)}, path)
        with pytest.raises(CheckpointError, match=r"is torch\.int32, here torch\.float32"):
            train(tmp_path / "run")


def test_settings_of_a_run_that_are_damaged(tmp_path: Path, two: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two, run)
    for text in ("{", "[]", "", "[" * 100_000, '{"steps": ' + "9" * 5000 + "}"):
        (run / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json .*Give --accept-changes to go on"):
            train(run)
    config = toy_config(run, **LOG)
    with pytest.warns(UserWarning, match=r"config\.json .*goes on with the settings given"):
        assert len(toy_run(config, accept_changes=True)) == 9
    assert json.loads((run / "config.json").read_text())["steps"] == 14


def test_folders_that_are_no_checkpoints(tmp_path: Path, two: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two, run)
    for name in ("²", "٣", "notes", "-1"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "00000099").write_text("a file")
    train(run)
    assert rows(run)[-1]["step"] == 14


# --- The folder ------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file(tmp_path: Path, harm: Any) -> None:
    harm(tmp_path / "lock")
    with (
        limits(5),
        pytest.raises(TrainingError, match=r"lock.* cannot be written .*another output"),
    ):
        train(tmp_path)


def test_an_output_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file", tmp_path / "file" / "in", Path("x" * 300), Path("a\0b")):
        with pytest.raises(TrainingError, match="give another output"):
            train(output)
    config = TrainConfig("toy", "", "", 1, 1, 1.0)
    with pytest.raises(ArgumentError, match="output is empty"):
        next(train_steps(config, Toy(config)))


def test_a_file_where_samples_should_be(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("mine")
    with pytest.raises(TrainingError, match=r"step 14 cannot be written to .*File exists"):
        train(tmp_path)
    assert (tmp_path / "samples").read_text() == "mine"


def test_what_killed_runs_left_is_cleared_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, 3)
    mine = ["notes.partial", "unet/mine.partial", ".hidden", "samples/a.part"]
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    left = tmp_path / "checkpoints" / "00000009.partial"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    parts = []
    for folder in (tmp_path, tmp_path / "unet"):
        part = part_folder(folder)
        parts.append(part.__enter__())
        (parts[-1] / "half").write_text("half")
        monkeypatch.setattr(parts_module, "_remove", lambda part: None)
        part.__exit__(None, None, None)  # as if it was killed: its lock is free
    monkeypatch.undo()
    assert all(part.exists() for part in parts)
    train(tmp_path)
    assert not left.exists() and not any(part.exists() for part in parts)
    assert all((tmp_path / name).read_text() == "half" for name in mine)


def test_what_is_left_stays_while_another_run_works(tmp_path: Path) -> None:
    from ldm.training.lock import only_run_in

    with only_run_in(tmp_path):
        (tmp_path / ".config.json.partial").write_text("being written")
        with pytest.raises(TrainingError, match="another run works"):
            train(tmp_path)
        assert (tmp_path / ".config.json.partial").exists()


# --- Defaults of PyTorch ---------------------------------------------------------------------


def test_other_defaults_of_pytorch_are_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "run", recipe="pixel", data=str(tmp_path))
    recipe = Toy(config)

    def attempts() -> list[Any]:
        return [
            lambda: build_recipe(config),
            lambda: next(train_steps(config, recipe)),
            lambda: open_data(str(tmp_path)),
            lambda: EmbeddedTexts(tmp_path),
        ]

    try:
        torch.set_default_dtype(torch.float64)
        for attempt in attempts():
            with pytest.raises(ArgumentError, match=r"defaults are torch\.float64 and cpu; .*call"):
                attempt()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        for attempt in attempts():
            with pytest.raises(ArgumentError, match=r"defaults are torch\.float32 and meta; "):
                attempt()
    assert not (tmp_path / "run").exists()


def test_a_batch_beyond_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(self: Toy, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(2**50)}

    monkeypatch.setattr(Toy, "batch", greedy)
    with pytest.raises(TrainingError, match="not enough memory at step 1, with a batch of 8 in 1"):
        train(tmp_path)


def test_errors_of_this_package_are_all(tmp_path: Path) -> None:
    """An error that a recipe's constructor lets through names the recipe."""
    config = toy_config(tmp_path, recipe="text", data="x" * 5000)
    with pytest.raises(LDMError):
        build_recipe(config)
