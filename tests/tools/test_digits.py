"""A run of minutes on real handwritten digits: what it draws is read as the class asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ldm.cli import train
from ldm.training.data.idx import write_idx
from tools import read_digits

CONFIG = Path(__file__).parents[2] / "configs" / "train" / "mnist.toml"
# Of mnist.toml, what differs for digits of 8 px, and for minutes.
SMALL = {
    "model.block_out_channels": [32, 64],
    "model.down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "model.up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "options.data.pad": 8,
    "learning_rate": 2e-3,
    "warmup": 20,
    "ema_decay": 0.99,
    "steps": 300,
    "sample_every": 300,
}


def write_digits(folder: Path, learnt: int = 1500) -> None:
    """The 1,797 digits of the UCI repository, 8 × 8 px, as MNIST's files."""
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    for split, rows in (("train", slice(learnt)), ("t10k", slice(learnt, None))):
        write_idx(folder / f"{split}-images-idx3-ubyte", images[rows])
        write_idx(folder / f"{split}-labels-idx1-ubyte", digits.target[rows].astype(np.uint8))


@pytest.mark.slow
def test_digits_drawn_after_minutes_are_read_as_asked(tmp_path: Path) -> None:
    data, run, read = (tmp_path / name for name in ("data", "run", "read"))
    data.mkdir()
    write_digits(data)
    sets = {"data": str(data), "output": str(run), **SMALL}
    told = [f"--set={key}={json.dumps(value)}" for key, value in sets.items()]
    assert train.main(["--config", str(CONFIG), *told]) == 0
    arguments = ["--model", str(run), "--output", str(read), "--count", "10"]
    assert read_digits.main([*arguments, "--reader-steps", "600"]) == 0
    report = json.loads((read / "report.json").read_text())
    assert report["reader_on_real"] > 0.9
    assert report["read_as_asked"] >= 0.9
