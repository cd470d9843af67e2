"""Training on tiny data: every recipe runs and saves, a resumed run equals an unbroken one."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ldm.checkpoints.folder import load_component
from ldm.cli.train import main
from ldm.clip import CLIPTextEncoder
from ldm.errors import ArgumentError, CheckpointError
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler, SchedulerConfig
from ldm.training.checkpoint import checkpoints
from ldm.training.config import TrainConfig, read_config
from ldm.training.ema import EMA
from ldm.training.loop import train_steps
from ldm.training.objectives import diffusion_weight, psnr
from ldm.training.recipes import build_recipe
from ldm.training.recipes.text import TextRecipe
from ldm.vae import AutoencoderKL

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
COLOURS = {"red": (200, 20, 20), "blue": (20, 40, 200), "green": (10, 160, 40), "black": (0, 0, 0)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of a coloured square, 32 px, and twelve texts with embeddings."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    images, rows = np.full((40, 32, 32, 3), 255, np.uint8), []
    for i, image in enumerate(images):
        name = list(COLOURS)[i % 4]
        top, left = rng.integers(2, 14, 2)
        image[top : top + 14, left : left + 14] = COLOURS[name]
        rows.append({"caption": f"a {name} square", "split": "held_out" if i >= 36 else "train"})
    np.save(folder / "images.npy", images)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [f"a {colour} {noun}" for colour in COLOURS for noun in ("car", "cat", "house")]
    embeddings = rng.standard_normal((12, 8)).astype(np.float16)
    np.save(folder / "embeddings.npy", embeddings / np.linalg.norm(embeddings, axis=1)[:, None])
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return folder


def settings(recipe: str, data: Path, output: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "recipe": recipe,
        "data": str(data),
        "output": str(output),
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup": 1,
        "mixed_precision": "no",
        "log_every": 1,
        "checkpoint_minutes": 1e9,
    }
    if recipe == "autoencoder":
        values["model"] = {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1}
        values["model"] |= {"norm_num_groups": 4, "sample_size": 32}
        phases = [
            {"until": 0.5, "size": 16, "batch_size": 6},
            {"until": 1.0, "size": 32, "batch_size": 2},
        ]
        values["options"] = {"kl_weight": 1e-3, "gradient_weight": 0.5, "phases": phases}
    if recipe == "text":
        values["model"] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        values["model"] |= {"num_attention_heads": 2}
        values["options"] = {"temperature": 0.1, "max_tokens": 20, "held_out": 2}
    if recipe == "latent":
        values["model"] = {"sample_size": 4, "block_out_channels": [16, 32], "norm_num_groups": 8}
        values["model"] |= {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}
        values["model"] |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
        values["model"] |= {"attention_head_dim": 2, "layers_per_block": 1}
        values["model"] |= {"cross_attention_dim": 32}
        values["options"] = {
            "vae": str(output.parent / "autoencoder" / "vae"),
            "text_encoder": str(output.parent / "text" / "text_encoder"),
            "caption_dropout": 0.1,
            "min_snr_gamma": 5.0,
            "scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
            "defaults": {"num_inference_steps": 2, "guidance_scale": 3.0},
            "prompts": ["a red square", "a blue square"],
        }
    return TrainConfig(**(values | changes))


def run(config: TrainConfig, stop_at: int | None = None) -> list[float]:
    """Train; returns the losses. ``stop_at`` breaks off after that many steps."""
    torch.manual_seed(config.seed)
    losses = []
    for state in train_steps(config, build_recipe(config)):
        losses.append(state.metrics["loss"])
        if state.step == stop_at:
            break
    return losses


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three recipes, one after the other, as the README runs them."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe in ("autoencoder", "text", "latent"):
        run(settings(recipe, data, folder / recipe))
    return folder


def test_the_run_folder_of_the_last_recipe_is_a_model_that_draws(trained: Path) -> None:
    pipe = Pipeline.from_pretrained(trained / "latent")
    assert pipe.defaults.num_inference_steps == 2 and pipe.defaults.guidance_scale == 3.0
    assert pipe("a red square", seed=0).images[0].size == (32, 32)
    for name in ("config.json", "metrics.jsonl", "samples/00000006.png"):
        assert (trained / "latent" / name).is_file()


def test_saved_latents_have_unit_variance(trained: Path, data: Path) -> None:
    vae = load_component(AutoencoderKL, trained / "autoencoder" / "vae", torch.float32)
    x = torch.from_numpy(np.load(data / "images.npy")[:36]).permute(0, 3, 1, 2) / 127.5 - 1
    assert abs(float(vae.encode(x).std()) - 1) < 0.05


def test_a_decoder_trained_alone_keeps_the_latents(trained: Path, data: Path, tmp_path: Path):
    start = trained / "autoencoder" / "vae"
    config = settings("autoencoder", data, tmp_path / "vae", start=str(start))
    config.options["decoder_only"] = True
    run(config)
    old, new = (load_component(AutoencoderKL, p, None) for p in (start, tmp_path / "vae" / "vae"))
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(new.encode(x), old.encode(x), atol=0, rtol=0)
    assert new.config == old.config
    assert (new.decode(old.encode(x)) - old.decode(old.encode(x))).abs().max() > 1e-4


def test_the_text_encoder_is_saved_without_its_training_head(trained: Path) -> None:
    encoder = load_component(CLIPTextEncoder, trained / "text" / "text_encoder", torch.float32)
    ema = load_file(checkpoints(trained / "text")[-1] / "ema.safetensors")
    weight = encoder.text_model.final_layer_norm.weight
    assert torch.equal(weight, ema["text_encoder.text_model.final_layer_norm.weight"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_unbroken_one(data: Path, tmp_path: Path, optimizer: str) -> None:
    whole = settings("autoencoder", data, tmp_path / "whole", optimizer=optimizer)
    losses = run(whole)
    broken = settings(
        "autoencoder", data, tmp_path / "broken", optimizer=optimizer, checkpoint_minutes=0.0
    )
    first = run(broken, stop_at=4)
    assert first == losses[:4]
    assert run(broken) == losses[4:]  # bit for bit: weights, moments, average, batches
    ours, theirs = (checkpoints(tmp_path / name)[-1] for name in ("broken", "whole"))
    for name in ("model", "ema"):
        a, b = (load_file(path / f"{name}.safetensors") for path in (ours, theirs))
        assert all(torch.equal(a[key], b[key]) for key in b)


def test_a_finished_run_does_nothing_more(trained: Path, data: Path) -> None:
    config = settings("autoencoder", data, trained / "autoencoder")
    with pytest.warns(
        UserWarning, match=r"autoencoder is finished: 6 of 6 steps are done; to train"
    ):
        assert run(config) == []


def test_a_checkpoint_that_was_cut_off_is_named(data: Path, tmp_path: Path) -> None:
    config = settings("autoencoder", data, tmp_path / "run")
    run(config)
    file = checkpoints(tmp_path / "run")[-1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="remove that folder"):
        run(replace(config, steps=7))


def test_a_checkpoint_half_written_is_passed_over(data: Path, tmp_path: Path) -> None:
    config = settings("autoencoder", data, tmp_path / "run")
    run(config)
    (tmp_path / "run" / "checkpoints" / "00000009.partial").mkdir()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["00000006"]


@pytest.mark.parametrize("name", ["vae", "text", "latent"])
def test_the_shipped_configs_read(name: str) -> None:
    assert read_config(CONFIGS / f"{name}.toml").output.startswith("runs/")


def test_overrides_and_bad_settings() -> None:
    config = read_config(CONFIGS / "vae.toml", ["steps=3", "output=here", "options.kl_weight=0.5"])
    assert (config.steps, config.output, config.options["kl_weight"]) == (3, "here", 0.5)
    for override, message in (
        ("speed=3", "unknown setting speed"),
        ("steps=0", "steps is 0"),
        ("steps", "not of the form"),
        ("mixed_precision=fp8", "mixed_precision is 'fp8'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            read_config(CONFIGS / "vae.toml", [override])
    with pytest.raises(ArgumentError, match="does not exist"):
        read_config("nowhere.toml")


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig("text", "", "", 100, 1, learning_rate=2.0, warmup=10, decay_from=0.5)
    rates = [config.learning_rate_at(step) for step in (0, 4, 9, 30, 50, 75, 99)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0, 1.0, 0.04])


def test_the_average_follows_its_formula() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    ema, expected = EMA(model, decay=0.5), 1.0
    for step, value in enumerate([3.0, 5.0, 9.0, 2.0, 2.0, 4.0, 8.0, 8.0, 1.0, 7.0]):
        torch.nn.init.constant_(model.weight, value)
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(ema.model.weight) == pytest.approx(expected, rel=1e-6)


def test_min_snr_weights() -> None:
    """Hang et al. 2023: the weight of x₀'s error is min(SNR, γ), whatever is predicted."""
    t = torch.tensor([0, 300, 999])
    for prediction_type, factor in (("epsilon", 0), ("v_prediction", 1)):
        scheduler = DDPMScheduler(SchedulerConfig(prediction_type=prediction_type))
        snr = scheduler.snr(t).double()
        expected = snr.clamp(max=5) / (snr + factor)
        assert (diffusion_weight(scheduler, t, 5.0) - expected).abs().max() < 1e-6
        assert torch.equal(diffusion_weight(scheduler, t, None), torch.ones(3))


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(2, 3, 8, 8)
    assert psnr(x + 0.2, x) == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a METHOD, such as lora, or --config FILE"),
        (("--config", "nowhere.toml"), "nowhere.toml does not exist"),
        (("--config", str(CONFIGS / "vae.toml"), "--set", "steps"), "'steps' is not of the form"),
        (("--config", str(CONFIGS / "vae.toml"), "--set", "data=nowhere"), "does not exist"),
        (("--config", str(CONFIGS / "vae.toml"), "--threads", "0"), "--threads is 0"),
    ],
)
def test_the_command_refuses_on_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    told = capsys.readouterr().err
    assert code == 2
    assert message in told
    assert told.count("\n") == 1


@pytest.fixture
def text_config(data: Path, tmp_path: Path) -> Path:
    """A config file of the text recipe."""
    config = tmp_path / "text.toml"
    values = asdict(settings("text", data, tmp_path / "run", log_every=3))
    tables = {key: values.pop(key) for key in ("model", "options")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += [f"{name} = {inline(table)}" for name, table in tables.items()]
    config.write_text("\n".join(lines))
    return config


def test_the_command_trains_and_a_dry_run_does_not(
    text_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(text_config), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told[: told.index("\n}") + 2])["model"]["hidden_size"] == 32
    assert "10 examples to learn from, 2 held out" in told
    assert "activations of 4 examples" in told
    assert not (tmp_path / "run").exists()
    assert main(["--config", str(text_config), "--set", "steps=3"]) == 0
    assert "\nstep 3/3" in capsys.readouterr().out
    assert checkpoints(tmp_path / "run")[-1].name == "00000003"


def test_the_command_stops_with_a_checkpoint(
    text_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch, before = TextRecipe.batch, signal.getsignal(signal.SIGINT)

    def interrupted(self: TextRecipe, step: int, generator: torch.Generator) -> dict:
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return batch(self, step, generator)

    monkeypatch.setattr(TextRecipe, "batch", interrupted)
    assert main(["--config", str(text_config)]) == 130
    assert "stopping after this step" in capsys.readouterr().err
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["00000002"]
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert main(["--config", str(text_config), "--set", "batch_size=2"]) == 2
    assert "batch_size was 4, now 2" in capsys.readouterr().err
    assert main(["--config", str(text_config), "--set", "batch_size=2", "--accept-changes"]) == 0
    assert checkpoints(tmp_path / "run")[-1].name == "00000006"


def test_the_command_stops_at_once_while_it_prepares(
    text_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = TextRecipe.prepare

    def interrupted(self: TextRecipe, accelerator: Accelerator) -> None:
        signal.raise_signal(signal.SIGINT)
        prepare(self, accelerator)
        raise AssertionError("the signal was only noted")

    monkeypatch.setattr(TextRecipe, "prepare", interrupted)
    assert main(["--config", str(text_config)]) == 130
    assert "after this step" not in capsys.readouterr().err


def vae_weights(data: Path, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    config = settings("autoencoder", data, folder, max_grad_norm=1e9)
    config.options |= {"phases": [{"until": 1.0, "size": 24, "batch_size": 2}]} | options
    run(config)
    return load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")


def test_the_autoencoder_learns_against_a_discriminator_when_its_time_has_come(
    data: Path, tmp_path: Path
) -> None:
    alone = vae_weights(data, tmp_path / "alone")
    never = vae_weights(data, tmp_path / "never", adversarial_weight=0.5, adversarial_from=0.99)
    late = vae_weights(data, tmp_path / "late", adversarial_weight=0.5, adversarial_from=0.5)
    assert alone.keys() == never.keys() == late.keys()  # the discriminator is not saved
    assert all(torch.equal(alone[name], never[name]) for name in alone)
    assert any(not torch.equal(alone[name], late[name]) for name in alone)


def test_crops_too_small_for_the_discriminator(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="crops of 16 px, too small for the discriminator"):
        config = settings("autoencoder", data, tmp_path)
        config.options |= {"adversarial_weight": 0.1}
        run(config)


def inline(value: Any) -> str:
    """As TOML: what JSON writes, but for tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
