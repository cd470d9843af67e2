"""Pixel models and their classifiers: short runs on small stripes, and what they leave behind."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.config import SchedulerConfig
from ldm.errors import ArgumentError, DataError, LDMError
from ldm.likelihood import bound_terms
from ldm.pipeline import Pipeline
from ldm.training import figures
from ldm.training.config import TrainConfig, read_config
from ldm.training.data.idx import write_idx
from ldm.training.loop import train_steps
from ldm.training.recipes import build_recipe
from ldm.training.recipes.classifier import ClassifierRecipe
from ldm.training.recipes.pixel import PixelRecipe
from tools import likelihood as likelihood_tool
from tools import read_digits

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
PIXEL = ("mnist", "mnist_unconditional", "improved", "adm", "photographs")
UNET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 6 px: white above, white on the left, white in the middle. As IDX files."""
    folder = tmp_path_factory.mktemp("stripes")
    for split, count in (("train", 90), ("t10k", 30)):
        labels = np.arange(count) % 3
        images = np.random.default_rng(count).integers(0, 40, (count, 6, 6)).astype(np.uint8)
        images[labels == 0, :3] += 200
        images[labels == 1, :, :3] += 200
        images[labels == 2, 2:4, 2:4] += 200
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels.astype(np.uint8))
    return folder


def settings(data: Path, output: Path, options: dict[str, Any], **changes: Any) -> TrainConfig:
    common = {
        "data": {"pad": 8, "classes": ["top", "left", "middle"]},
        "defaults": {"num_inference_steps": 3},
        "scheduler": {"num_train_timesteps": 20, "beta_end": 0.4, "timestep_spacing": "trailing"},
        "samples": 3,
        "held_out": 6,
        "bound_calls": 4,
    }
    values: dict[str, Any] = {
        "recipe": "pixel",
        "data": str(data),
        "output": str(output),
        "steps": 4,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "mixed_precision": "no",
        "log_every": 1,
        "model": UNET,
        "options": {**common, **options},
    }
    return TrainConfig(**(values | changes))


def run(config: TrainConfig) -> list[dict[str, float]]:
    torch.manual_seed(config.seed)
    return [state.metrics for state in train_steps(config, build_recipe(config))]


@pytest.fixture(scope="module")
def guided(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by class, with a learned variance."""
    output = tmp_path_factory.mktemp("runs") / "guided"
    options = {"classes": True, "objective": "hybrid"}
    options["scheduler"] = {
        "num_train_timesteps": 20,
        "beta_schedule": "squaredcos_cap_v2",
        "variance_type": "learned_range",
        "timestep_spacing": "trailing",
    }
    metrics = run(settings(data, output, options))
    assert {"mse", "vlb", "loss"} <= metrics[0].keys()
    assert metrics[0]["loss"] == pytest.approx(metrics[0]["mse"] + 1e-3 * metrics[0]["vlb"])
    assert 0 < metrics[-1]["bits_per_dim"] < 20
    return output


def test_the_run_is_a_model_that_draws_its_classes(guided: Path) -> None:
    pipe = Pipeline.from_pretrained(guided)
    assert pipe.unet.config.num_class_embeds == 4 and pipe.unet.config.out_channels == 2
    assert pipe.defaults.num_inference_steps == 3
    pictures = pipe(["left", "2"], seed=0, guidance_scale=2.0).images
    assert [picture.size for picture in pictures] == [(8, 8)] * 2
    index = json.loads((guided / "model_index.json").read_text())
    assert index["id2label"] == {"0": "top", "1": "left", "2": "middle"}


def test_figures_are_drawn_without_being_asked(guided: Path) -> None:
    for name in ("denoising", "noising", "00000004"):
        picture = np.asarray(Image.open(guided / "figures" / f"{name}.png").convert("L"))
        assert picture.std() > 10, name
    assert Image.open(guided / "samples" / "00000004.png").size == (24, 8)
    assert not list((guided / "figures").glob(".*"))


def test_without_matplotlib_a_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="draws no figures; pip install"):
        assert run(settings(data, tmp_path / "run", {}, steps=1))
    assert not list((tmp_path / "run" / "figures").glob("*"))


@pytest.mark.parity
def test_diffusers_draws_from_the_run(data: Path, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    run(settings(data, tmp_path / "run", {}))
    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path / "run")
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    drawn = theirs(generator=generator, num_inference_steps=3, output_type="np").images[0]
    ours = Pipeline.from_pretrained(tmp_path / "run", dtype="float32")("", seed=3).images[0]
    assert np.abs(np.asarray(ours.convert("L")) / 255 - drawn[..., 0]).max() < 3e-3


@pytest.mark.parametrize("kind", ["mean", "sample", "v_prediction"])
def test_every_prediction_trains_and_draws(data: Path, tmp_path: Path, kind: str) -> None:
    schedule = {"num_train_timesteps": 20, "beta_end": 0.4, "prediction_type": kind}
    config = settings(data, tmp_path / kind, {"scheduler": schedule, "figures": False}, steps=20)
    metrics = run(replace(config, learning_rate=4e-3))
    assert metrics[-1]["mse"] < metrics[0]["mse"]
    assert not (tmp_path / kind / "figures" / "denoising.png").exists()
    pipe = Pipeline.from_pretrained(tmp_path / kind, dtype="bfloat16")
    assert pipe("", seed=0).images[0].size == (8, 8)
    # What "mean" says beyond x_t is lost in half precision.
    assert (next(pipe.unet.parameters()).dtype == torch.float32) == (kind == "mean")


def test_labels_are_dropped_for_guidance(data: Path, tmp_path: Path) -> None:
    recipe = PixelRecipe(settings(data, tmp_path, {"classes": True, "label_dropout": 0.25}))
    labels = recipe.noised(0, 4000, torch.Generator().manual_seed(0))["labels"]
    share = torch.bincount(labels) / len(labels)
    assert share.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    never = PixelRecipe(settings(data, tmp_path, {"classes": True, "label_dropout": 0.0}))
    assert never.model.config.num_class_embeds == 3
    alone = PixelRecipe(settings(data, tmp_path, {}))
    assert alone.model.config.num_class_embeds is None and "labels" not in alone.example(2)


def test_the_classifier_reads_noised_pictures_and_joins_the_model(
    data: Path, tmp_path: Path
) -> None:
    run(settings(data, tmp_path / "model", {"classes": True}))
    options = {"guides": str(tmp_path / "model"), "data": {"pad": 8}, "held_out": 30}
    options["data"]["classes"] = ["top", "left", "middle"]
    network = {
        "block_out_channels": [16, 32],
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 16,
        "attn_norm_num_groups": 8,
        "norm_num_groups": 8,
    }
    config = settings(data, tmp_path / "classifier", {}, recipe="classifier", model=network)
    config = replace(config, options=options, steps=60, batch_size=24, learning_rate=4e-3)
    config = replace(config, warmup=5, ema_decay=0.9)
    last = run(config)[-1]
    assert last["accuracy_t0"] >= 0.9  # of clean pictures; of noise it can only guess
    assert last["accuracy_t0"] > last["accuracy_t19"]
    pipe = Pipeline.from_pretrained(tmp_path / "model")
    assert pipe.classifier.config.num_classes == 3
    plain, pushed = (pipe("left", seed=0, classifier_scale=s).images[0] for s in (0.0, 20.0))
    assert np.abs(np.asarray(plain).astype(int) - np.asarray(pushed)).max() > 5


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"options": {"clases": True}}, ArgumentError, "options.clases; did you mean 'classes'"),
        ({"options": {"objective": "vbl"}}, ArgumentError, "options.objective is 'vbl'"),
        ({"options": {"objective": "hybrid"}}, ArgumentError, "variance_type is 'fixed_small'"),
        ({"options": {"label_dropout": 1.0}}, ArgumentError, r"it must be in \[0, 1\)"),
        ({"model": {"in_channels": 3}}, ArgumentError, "model.in_channels follows from the data"),
        ({"options": {"scheduler": {"beta_schedule": "x"}}}, LDMError, "beta_schedule is 'x'"),
    ],
)
def test_settings_that_cannot_work(
    data: Path, tmp_path: Path, changes: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        config = settings(data, tmp_path, changes.get("options", {}))
        build_recipe(replace(config, model={**UNET, **changes.get("model", {})}))


def test_half_precision_cannot_tell_the_mean(data: Path, tmp_path: Path) -> None:
    config = settings(data, tmp_path, {"scheduler": {"prediction_type": "mean"}})
    with pytest.raises(ArgumentError, match="set it to 'no'"):
        PixelRecipe(replace(config, mixed_precision="bf16"))


def test_pictures_without_labels_have_no_classes(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (8, 8), (i * 60, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match=r"has no labels, which options\.classes needs"):
        PixelRecipe(settings(tmp_path, tmp_path / "run", {"classes": True, "data": {}}))
    recipe = PixelRecipe(settings(tmp_path, tmp_path / "run", {"data": {}}))
    assert recipe.model.config.in_channels == 3


def test_a_classifier_of_other_pictures_is_refused(data: Path, guided: Path) -> None:
    config = settings(data, guided / "no", {}, recipe="classifier")
    with pytest.raises(ArgumentError, match=r"give the options\.data of its config"):
        ClassifierRecipe(replace(config, options={"guides": str(guided), "data": {"pad": 12}}))


@pytest.mark.parametrize("name", PIXEL)
def test_the_shipped_configs_build(data: Path, name: str) -> None:
    config = read_config(CONFIGS / f"{name}.toml", [f"data={data}"])
    recipe = build_recipe(config)
    size = recipe.model.config.sample_size
    assert size == (64 if name == "photographs" else 32)
    assert 1e6 < sum(p.numel() for p in recipe.model.parameters()) < 2e7
    steps = recipe.scheduler.config.num_train_timesteps
    assert recipe.scheduler.alphas_cumprod[-1] < 2e-3 and steps in (300, 1000)
    assert recipe.example(2)["x0"].shape[2:] == (size, size)


def test_the_shipped_classifier_fits_the_shipped_adm(data: Path, tmp_path: Path) -> None:
    adm = build_recipe(read_config(CONFIGS / "adm.toml", [f"data={data}"]))
    adm.save(adm.model, tmp_path / "adm")
    overrides = [f"data={data}", f"options.guides={tmp_path / 'adm'}"]
    recipe = build_recipe(read_config(CONFIGS / "adm_classifier.toml", overrides))
    loss, metrics = recipe.loss(recipe.model, recipe.example(4))
    assert loss.isfinite() and 0 <= metrics["accuracy"] <= 1


def test_the_likelihood_tool_prints_every_term(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(guided), "--count", "3", "--output", str(tmp_path / "bound.json")]
    assert likelihood_tool.main(arguments) == 0
    told = capsys.readouterr().out
    assert "L_0 (decoder)" in told and "L_20 (prior)" in told and "± " in told
    found = json.loads((tmp_path / "bound.json").read_text())
    assert len(found["terms"]) == 21 and found["pictures"] == 3
    assert sum(found["terms"]) == pytest.approx(found["total"], rel=1e-5)
    pipe = Pipeline.from_pretrained(guided, dtype="float32")
    recipe = PixelRecipe(read_run(guided))
    recipe.options.held_out = 3
    recipe.prepare(None)
    with torch.no_grad():
        terms = bound_terms(
            pipe.scheduler,
            recipe.predict(pipe.unet),
            recipe.shown.pixels,
            torch.Generator().manual_seed(0),
            pipe.scheduler.clip,
        )
    assert found["terms"] == pytest.approx(terms.mean(0).tolist(), rel=1e-3, abs=1e-6)
    assert likelihood_tool.main([*arguments[:4], "--calls", "4"]) == 0
    assert "bits/dim, 3 pictures" in capsys.readouterr().out


def read_run(folder: Path) -> TrainConfig:
    """The settings that a run was made with."""
    return TrainConfig(**json.loads((folder / "config.json").read_text()))


def test_the_reader_counts_what_it_reads(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "read"
    arguments = ["--model", str(guided), "--output", str(output), "--count", "4"]
    assert read_digits.main([*arguments, "--reader-steps", "60"]) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["reader_on_real"] > 0.9
    shares = report["by_class"]
    assert list(shares) == ["top", "left", "middle"]
    assert np.mean(list(shares.values())) == pytest.approx(report["read_as_asked"])
    assert Image.open(output / "grid.png").size == (32, 24)
    out = capsys.readouterr().out
    assert "of 12 read as the class asked" in out
    # Four steps have taught the model nothing, and the reader can tell that from its features.
    assert report["frechet"] > 3 * report["frechet_of_real"] > 0
    assert f"{report['frechet']:.2f} of 12 drawn, {report['frechet_of_real']:.2f} of 12" in out


def test_of_a_model_without_classes_the_reader_tells_the_distance(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings(data, tmp_path / "run", {}))
    output = tmp_path / "read"
    arguments = ["--model", str(tmp_path / "run"), "--output", str(output), "--count", "2"]
    assert read_digits.main([*arguments, "--reader-steps", "60"]) == 0
    report = json.loads((output / "report.json").read_text())
    assert "by_class" not in report and report["frechet"] > 3 * report["frechet_of_real"]
    assert "of 6 drawn" in capsys.readouterr().out


def test_the_tools_refuse_on_one_line(guided: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for main in (likelihood_tool.main, read_digits.main):
        assert main(["--model", str(guided), "--count", "0"]) == 2
        assert "--count is 0" in capsys.readouterr().err
        assert main(["--model", str(guided / "nowhere")]) in (1, 2)
        assert capsys.readouterr().err.count("\n") == 1


def test_the_schedule_is_read_as_diffusers_writes_it() -> None:
    """ "mean" is ours: it is kept in the file, so that nothing else is drawn by mistake."""
    config = SchedulerConfig(prediction_type="mean")
    assert SchedulerConfig.from_dict(config.to_dict()) == config
