"""The first batch on a sheet: its pictures, captions, masks, and sizes; by ``--dry-run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from ldm.cli.train import main
from ldm.training.data import step_generator
from ldm.training.recipes.contact_sheet import contact_sheet, describe
from tests.helpers.toy_latents import build


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(6):
        picture = np.random.default_rng(i).integers(0, 256, (40, 32 + 8 * i, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a thing, red, no {i}")
        Image.new("L", (32 + 8 * i, 40), 255).save(folder / f"{i}-masklabel.png")
    return folder


@pytest.mark.parametrize("keep_contexts", [False, True])
def test_the_first_batch_is_the_runs(
    parts: Path, source: Path, tmp_path: Path, keep_contexts: bool
) -> None:
    """Encoded alone, without files: the rows, captions and noise of step 0."""
    options: dict[str, Any] = {"data": {"size": 32, "mask": "masklabel", "flip": True}}
    options |= {"buckets": {"multiple": 8}, "keep_contexts": keep_contexts}
    recipe = build(parts, source, tmp_path / "run", **options)
    first = recipe.first_batch()
    assert not (tmp_path / "run").exists()
    recipe.prepare(Accelerator(cpu=True))
    batch = recipe.batch(0, step_generator(recipe.config.seed, 0))
    for name in batch.keys() - {"x0", "context"}:
        assert torch.equal(first[name], batch[name]), name
    assert (first["x0"] - batch["x0"]).abs().max() < 0.02 * batch["x0"].abs().max()
    picture = contact_sheet(recipe, first)
    assert picture.width > 4 * 300 and picture.mode == "RGB"


def test_what_stands_below_a_picture(parts: Path, source: Path, tmp_path: Path) -> None:
    """What the network reads, which is not always what was written."""
    recipe = build(parts, source, tmp_path, data={"size": 32, "mask": "masklabel"})
    tokenizer = recipe.text_models[0].tokenizer
    one = {"ids": recipe._tokens(["A Dog, " + "red " * 90])[0]}
    assert describe(one, tokenizer) == "a dog , " + " ".join(["red"] * 72)
    one = {
        "ids": recipe._tokens([""])[0],
        "time_ids": torch.tensor([700.0, 500, 12, 0, 64, 48]),
        "weight": torch.tensor(0.6),
    }
    expected = "(no caption) [stored 500x700, cropped at 0,12, to 48x64] [loss x 0.6]"
    assert describe(one, tokenizer) == expected


def toml(value: object) -> str:
    """A value of these configs in TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    return repr(value)


def test_a_dry_run_writes_it(
    parts: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"size": 32, "mask": "masklabel"}
    config = build(parts, source, tmp_path / "run", batch_size=4, data=data).config
    lines = [f"{name} = {getattr(config, name)!r}" for name in ("recipe", "data", "output")]
    lines += ["steps = 1", "batch_size = 4", "learning_rate = 1e-3"]
    for table in ("model", "options"):
        lines += [f"[{table}]", *(f"{k} = {toml(v)}" for k, v in getattr(config, table).items())]
    (tmp_path / "c.toml").write_text("\n".join(lines))
    assert main(["--config", str(tmp_path / "c.toml"), "--dry-run"]) == 0
    assert f"first batch: {tmp_path / 'run/first_batch.png'}" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["first_batch.png"]
    assert Image.open(tmp_path / "run/first_batch.png").width > 4 * 300
