"""Two processes on the CPU end where one does, sharing a batch (DDP) or the weights too (FSDP2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm.training.checkpoint import checkpoints
from tests.helpers.share_muon import moved
from tests.helpers.toy_training import toy_config, toy_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds; it takes about ten
DDP = ("--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
PLAIN = {"dropout": 0.0}  # each process draws its own dropout


def launch(script: str, run: Path, *options: str, **settings: object) -> None:
    """`accelerate launch` on two processes, to the end."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    command += ["--main_process_port", "0", *options]
    command += [str(ROOT / "tests" / "helpers" / script), str(run)]
    command += [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


def assert_near(run: Path, whole: Path, bound: float) -> None:
    """The newest checkpoints of both, tensor by tensor."""
    for file in ("model", "ema", "optimizer"):
        a, b = (load_file(checkpoints(p)[-1] / f"{file}.safetensors") for p in (run, whole))
        assert a.keys() == b.keys() and len(a) >= 6
        for key, value in b.items():
            assert a[key].dtype == value.dtype
            assert (a[key] - value).abs().max() <= bound, f"{file}: {key}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps on one process."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("whole")
    toy_run(toy_config(run, options=PLAIN))
    return run


def test_two_processes_learn_as_one(whole: Path, tmp_path: Path) -> None:
    """Also with accumulated gradients; the kept figures are those of the whole batch."""
    run = tmp_path / "run"
    launch("toy_training.py", run, *DDP, gradient_accumulation_steps=2, options=PLAIN)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
    assert_near(run, whole, 1e-5)
    assert len(list((run / "samples").iterdir())) == 1 and (run / "toy.safetensors").exists()


def test_two_processes_share_the_work_of_muon(tmp_path: Path) -> None:
    """Matrices of two shapes, an odd number of each, so that either process gets some of both."""
    launch("share_muon.py", tmp_path, *DDP)
    weights = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = moved()
    assert len(alone) == 6
    for one, other, want in zip(*weights, alone, strict=True):
        assert torch.equal(one, other)
        assert (one - want).abs().max() < 2e-3  # matrices move by up to 0.06


@pytest.mark.filterwarnings("ignore:the run goes on")
def test_a_run_may_be_sharded_on_its_way(whole: Path, tmp_path: Path) -> None:
    """Steps 1-3 on one process, 4-6 on two that share the weights, 7-8 on one again."""
    run = tmp_path / "run"
    rates = {"decay_from": 1.0}  # the rate must not depend on where a part ends
    toy_run(toy_config(run, options=PLAIN, steps=3, **rates))
    launch(
        "toy_sharded.py",
        run,
        *("--config_file", str(ROOT / "configs" / "train" / "fsdp.yaml")),
        *("--fsdp_min_num_params", "300"),
        gradient_accumulation_steps=2,
        options=PLAIN,
        steps=6,
        **rates,
    )
    assert [path.name for path in checkpoints(run)] == ["00000003", "00000006"]
    toy_run(toy_config(run, options=PLAIN, steps=8, **rates))
    other = tmp_path / "whole"
    toy_run(toy_config(other, options=PLAIN, **rates))
    assert losses(run) == pytest.approx(losses(other), rel=1e-5)
    assert_near(run, other, 1e-5)
