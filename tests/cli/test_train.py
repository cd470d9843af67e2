"""``ldm train METHOD``: whose settings it takes, and a run's folder as a LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm.checkpoints.assets import asset_path
from ldm.cli.loras import lora_option
from ldm.cli.main import main
from ldm.cli.train import find_config, given_settings, parser
from ldm.errors import ArgumentError, CheckpointError
from ldm.training.config import read_config


def test_a_method_is_a_config_that_comes_with_ldm() -> None:
    assert find_config("lora", None) == str(asset_path("configs") / "train" / "lora.toml")
    assert find_config(None, "mine.toml") == "mine.toml"
    with pytest.raises(ArgumentError, match="did you mean 'lora'"):
        find_config("lroa", None)
    for method, file in ((None, None), ("lora", "mine.toml")):
        with pytest.raises(ArgumentError, match="give a METHOD"):
            find_config(method, file)


def test_every_method_has_settings_that_can_be_read() -> None:
    for path in sorted((asset_path("configs") / "train").glob("*.toml")):
        assert read_config(path).recipe


def test_options_stand_for_settings() -> None:
    words = ["lora", "--model", 'a "b".safetensors', "--data", "größe", "--output", "runs/x"]
    arguments = parser().parse_args(words)
    config = read_config(find_config("lora", None), given_settings(arguments))
    assert (config.options["base"], config.data) == ('a "b".safetensors', "größe")
    assert config.output == "runs/x"


def test_a_method_that_is_not_known_is_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "lroa"]) == 2
    assert "did you mean 'lora'" in capsys.readouterr().err


def test_the_folder_of_a_run_is_its_lora(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="0 LoRA files"):
        lora_option(str(tmp_path))
    file = tmp_path / "dog.safetensors"
    file.touch()
    assert lora_option(str(tmp_path))[0] == file
    path, scale = lora_option(f"{tmp_path}:0.5")
    assert (path, scale.unet) == (file, 0.5)
    (tmp_path / "cat.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"cat\.safetensors, dog\.safetensors"):
        lora_option(str(tmp_path))
    own = tmp_path / "pytorch_lora_weights.safetensors"
    own.touch()
    assert lora_option(str(tmp_path))[0] == own


def test_settings_shown_by_a_dry_run_are_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("PIL")
    from PIL import Image

    for i in range(2):
        Image.new("RGB", (140, 130), (i * 90, 20, 90)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a plain square")
    words = ["--data", str(tmp_path), "--output", str(tmp_path / "run")]
    assert main(["train", "lora", *words, "--set", "steps=3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    settings = json.loads(out[: out.index("\n}") + 2])
    assert settings["steps"] == 3
    assert "2 examples to learn from" in out
    assert "memory: " in out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["first_batch.png"]
