"""`tools.builtin_model.measure_loss`: the same pictures, noise and times for each model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.pipeline import Pipeline
from ldm.training.data import CaptionedImages
from ldm.training.objectives import simple_error
from tests.tools.test_evaluate import row, write_data
from tools.builtin_model import measure_loss

WEIGHTS = Path(__file__).parents[2] / "weights"


@pytest.fixture
def data(tmp_path: Path) -> CaptionedImages:
    """Thirty plain pictures of 32 px, five of them held out."""
    rows = [row("train" if i < 25 else "held_out", "car", None, str(i)) for i in range(30)]
    images = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
    return write_data(tmp_path / "data", rows, [*images])


def test_a_network_that_says_nothing_errs_by_the_target(data: CaptionedImages) -> None:
    pipe = Pipeline.from_pretrained(device="cpu", dtype="float32")
    torch.nn.init.zeros_(pipe.unet.conv_out.weight)
    torch.nn.init.zeros_(pipe.unet.conv_out.bias)
    rows = measure_loss.drawn_rows(data, 40, seed=1)["training's kind"]
    assert len(rows) == 40 and set(rows.tolist()) <= set(data.train.tolist())
    errors, times = measure_loss.losses(pipe, data, rows, seed=2)
    assert times.min() >= 0 and times.max() < 1000
    generator = torch.Generator().manual_seed(2)
    again = measure_loss.draw_times(pipe.scheduler, 40, generator, -0.4, 1.0)
    assert torch.equal(times, again)
    # The first block of pictures has the first noise that follows.
    x0 = pipe.vae.encode(data.pixels(rows[:32]))
    noise = torch.randn(x0.shape, generator=generator)
    wanted = simple_error(pipe.scheduler, torch.zeros_like(x0), x0, noise, times[:32])
    assert torch.allclose(errors[:32], wanted, atol=1e-5)


def test_thirds_of_the_times_are_told_apart() -> None:
    times = torch.tensor([900, 10, 500, 20, 510, 910])
    errors = torch.tensor([3.0, 1.0, 2.0, 1.0, 2.0, 3.0])
    found = measure_loss.summary(errors, times)
    assert [found[name]["mean"] for name in ("all", *measure_loss.LEVELS)] == [2, 1, 2, 3]
    assert found["all"]["error"] == pytest.approx(0.8944 / 6**0.5, abs=1e-4)


def test_models_are_compared_picture_by_picture(
    data: CaptionedImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, same = tmp_path / "loss.json", tmp_path / "same"
    same.symlink_to(WEIGHTS)
    models = [str(WEIGHTS), str(same)]
    arguments = ["--data", str(data.folder), "--count", "3", "--output", str(output)]
    assert measure_loss.main(["--model", *models, *arguments]) == 0
    report = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == report
    for name in ("training's kind", "held-out icons"):
        first, second = (report[model][name] for model in models)
        assert second.pop("all, less the first's") == {"mean": 0, "error": 0}
        assert first == second
