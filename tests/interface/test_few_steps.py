"""A LoRA for few steps in a model's folder: the same as by hand, off again, replayed, refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm import Pipeline
from ldm.checkpoints.assets import asset_path
from ldm.cli.common import USAGE
from ldm.cli.generate import main
from ldm.config.generation import Defaults, FewSteps
from ldm.errors import ArgumentError, CheckpointError
from ldm.fast import int8
from ldm.images import read_settings
from ldm.images.generation_info import read_generation_info
from tests.helpers.pictures import assert_same, draw_theirs, generator, quiet
from tests.helpers.pictures import draw as draw_both

SETTINGS = {"lora": "few", "sampler": "lcm", "num_inference_steps": 3, "guidance_scale": 1.0}
BY_HAND = {"sampler": "lcm", "num_inference_steps": 3, "guidance_scale": 1.0}


def lora_of(pipe: Pipeline, seed: int) -> dict[str, Tensor]:
    """Random factors for the U-Net's attention, in peft's names."""
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for name, layer in pipe.unet.named_modules():
        if re.search(r"to_[qkv]$", name):
            out, inner = layer.weight.shape
            found[f"unet.{name}.lora_A.weight"] = torch.randn(4, inner, generator=rng) * 0.3
            found[f"unet.{name}.lora_B.weight"] = torch.randn(out, 4, generator=rng) * 0.3
    return found


def advise(model: Path, **settings: Any) -> None:
    """Write a model's settings."""
    values = {"num_inference_steps": 6, "guidance_scale": 4.0, **settings}
    (model / "generation_config.json").write_text(json.dumps(values))


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    """A model with such a LoRA, and another one beside it."""
    copy = shutil.copytree(folder, tmp_path / "model")
    pipe = Pipeline.from_pretrained(copy, device="cpu")
    (copy / "few").mkdir()
    save_file(lora_of(pipe, 1), copy / "few" / "pytorch_lora_weights.safetensors")
    save_file(lora_of(pipe, 2), tmp_path / "style.safetensors")
    advise(copy, few_steps=SETTINGS)
    return copy


def load(model: Path, **options: Any) -> Pipeline:
    return Pipeline.from_pretrained(model, device="cpu", **options)


def draw(pipe: Pipeline, **options: Any) -> bytes:
    return pipe("a red car", seed=1, progress_bar=False, **options).images[0].tobytes()


@pytest.mark.parametrize("optimized", [False, True])
def test_the_same_as_by_hand_and_off_again(model: Path, optimized: bool) -> None:
    pipe, by_hand = load(model).optimize(optimized), load(model).optimize(optimized)
    plain = draw(pipe)
    weights = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    assert pipe.use_few_steps() is pipe and pipe.few_steps
    assert "few steps: by the model's own LoRA, few" in repr(pipe)
    by_hand.load_lora_weights(model / "few")
    assert draw(pipe) == draw(by_hand, **BY_HAND) != plain
    # What a request gives goes before.
    given = {"sampler": "euler", "num_inference_steps": 5, "guidance_scale": 2.0}
    assert draw(pipe, **given) == draw(by_hand, **given)
    assert not pipe.use_few_steps().use_few_steps(False).few_steps
    assert draw(pipe) == plain
    assert all(torch.equal(value, weights[key]) for key, value in pipe.unet.state_dict().items())


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_diffusers_draws_the_same_picture(model: Path) -> None:
    """Latents within 1e-4, or 5e-6 of the largest; pixels within one level of grey."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    theirs = quiet(diffusers.StableDiffusionPipeline.from_pretrained(model))
    theirs.load_lora_weights(model, subfolder="few")
    theirs.scheduler = diffusers.LCMScheduler.from_config(theirs.scheduler.config)
    steps = {"num_inference_steps": 3, "guidance_scale": 1.0}
    want = draw_theirs(theirs, generator=generator(5), **steps)
    ours = load(model, dtype="float32", few_steps=True)
    assert_same(draw_both(ours, generator=generator(5)), want)


def test_other_loras_add_to_it_and_leave_it_alone(model: Path) -> None:
    style = model.parent / "style.safetensors"
    pipe, by_hand = load(model, few_steps=True), load(model)
    alone = draw(pipe)
    pipe.load_lora_weights(style)
    for file in (model / "few", style):
        by_hand.load_lora_weights(file)
    assert draw(pipe) == draw(by_hand, **BY_HAND) != alone
    pipe.set_adapters([])
    assert draw(pipe) == alone
    pipe.unload_lora_weights()
    assert draw(pipe) == alone and not pipe.loras.loaded


def test_it_moves_with_the_model_and_is_saved_with_it(model: Path) -> None:
    pipe = load(model, dtype="bfloat16").use_few_steps()
    want = draw(load(model).use_few_steps())
    assert draw(pipe.to(torch.float32)) != want  # the weights were rounded
    pipe = load(model).use_few_steps()
    pipe.save_pretrained(model.parent / "whole")
    whole = load(model.parent / "whole")
    assert whole.defaults == Defaults(3, 1.0) and whole.choose_sampler(None).name == "lcm"
    assert draw(whole) == want
    pipe.use_few_steps(False).save_pretrained(model.parent / "plain")
    assert load(model.parent / "plain").defaults == Defaults(6, 4.0)


def test_a_picture_says_how_to_draw_it_again(model: Path) -> None:
    picture = load(model, few_steps=True)("a cat", seed=2, progress_bar=False).images[0]
    path = model.parent / "cat.png"
    picture.save(path)
    info = read_generation_info(path)
    assert info.loading == {"few_steps": True} and "<lora" not in info.arguments["prompt"]
    assert {name: info.arguments[name] for name in BY_HAND} == BY_HAND
    again = load(model, **info.loading)(**info.arguments, progress_bar=False).images[0]
    assert again.tobytes() == picture.tobytes()


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_fast_on_the_command_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr(int8, "gains", lambda dtype: True)
    common = ["a red car", "--seed", "3", "-m", str(model), "--device", "cpu", "--force"]

    def run(name: str, *options: str) -> dict[str, Any]:
        assert main([*common, "-o", name, *options]) == 0
        return {**read_settings(name)["arguments"], **read_settings(name)["loading"]}

    by_hand = ["--sampler", "lcm", "--steps", "3", "-g", "1"]
    run("hand.png", "--lora", str(model / "few"), *by_hand)
    capsys.readouterr()
    found = run("fast.png", "--fast")
    assert "few steps, by the LoRA in the model's folder" in capsys.readouterr().err
    assert (pixels("fast.png") == pixels("hand.png")).all()
    assert found["few_steps"] is True and found["int8"] is False
    assert "deep_cache" not in found and "guidance_interval" not in found
    assert main(["--from", "fast.png", "-m", str(model), "-o", "again.png"]) == 0
    assert (pixels("again.png") == pixels("fast.png")).all()
    # Options go before; what few steps stand for goes before a file's and the user's defaults.
    found = run("own.png", "--steps", "5", "--fast", "--sampler", "euler", "--deep-cache", "2")
    assert (found["num_inference_steps"], found["sampler"]) == (5, "euler")
    assert (found["guidance_scale"], found["deep_cache"]) == (1.0, 2)
    run("plain.png", "-g", "7", "--steps", "9")
    assert main(["--from", "plain.png", "--fast", "-m", str(model), "-o", "b.png"]) == 0
    assert (pixels("b.png") == pixels("fast.png")).all()
    Path("ldm.toml").write_text("steps = 9\nfast = true\n")
    assert run("c.png")["num_inference_steps"] == 9
    assert run("d.png", "--fast")["num_inference_steps"] == 3
    Path("ldm.toml").unlink()
    # Without few steps: the modes of other models.
    found = run("modes.png", "--fast", "--no-few-steps")
    assert (found["few_steps"], found["int8"], found["deep_cache"]) == (False, True, 3)
    assert found["num_inference_steps"] == 6
    advise(model)
    found = run("none.png", "--fast")
    assert (found["few_steps"], found["int8"], found["deep_cache"]) == (False, True, 3)
    assert (pixels("none.png") == pixels("modes.png")).all()
    capsys.readouterr()
    assert main([*common, "--few-steps", "-o", "e.png"]) == USAGE
    assert "has no LoRA for few steps" in capsys.readouterr().err
    assert not Path("e.png").exists()


def test_a_model_without_one_says_so(folder: Path, model: Path) -> None:
    with pytest.raises(ArgumentError, match="this model has no LoRA for few steps"):
        load(folder).use_few_steps()
    other = load(model)
    with pytest.raises(ArgumentError, match="no LoRA for few steps"):
        Pipeline(**other.components).use_few_steps()
    with pytest.raises(ArgumentError, match="on is 'yes'"):
        other.use_few_steps("yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora": "none"}, "lora is 'none', which does not exist"),
        ({"lora": ""}, "lora is ''; expected a file or a folder in the model's folder"),
        ({"lora": "../style.safetensors"}, "expected a file or a folder in the model's folder"),
        ({"lora": "/etc/passwd"}, "expected a file or a folder in the model's folder"),
        ({"lora": "a\0b"}, "few_steps: lora is"),
        ({"lora": "unet/config.json"}, "config.json"),
        ({"lora": "empty"}, "empty is a folder with 0 LoRA files"),
        ({"sampler": "fastest"}, "few_steps: sampler is 'fastest'"),
        ({"sampler": "dpmpp_2m_sde"}, "sampler is 'dpmpp_2m_sde'; expected one such as lcm"),
    ],
)
def test_what_cannot_be_used_is_named(model: Path, settings: dict[str, Any], words: str) -> None:
    (model / "empty").mkdir()
    advise(model, few_steps=SETTINGS | settings)
    pipe = load(model)
    before = draw(pipe)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        pipe.use_few_steps()
    assert not pipe.few_steps and draw(pipe) == before


def test_a_damaged_or_foreign_file_changes_nothing(model: Path) -> None:
    pipe, file = load(model), model / "few" / "pytorch_lora_weights.safetensors"
    before, whole = draw(pipe), load_file(file)
    first = next(iter(whole))
    for broken, words in (
        (whole | {first: torch.full_like(whole[first], torch.nan)}, "NaN"),
        (whole | {first: torch.zeros(4, 7)}, "another family of models, or damaged"),
    ):
        save_file(broken, file)
        with pytest.raises(CheckpointError, match=words):
            pipe.use_few_steps()
        assert not pipe.few_steps and draw(pipe) == before
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="pytorch_lora_weights"):
        pipe.use_few_steps()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("lcm_lora", "few_steps is 'lcm_lora'; expected an object"),
        ({"lora": 3}, "few_steps: lora is 3"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": "4"}, "num_inference_steps is '4'"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"strength": 1}, "few_steps: strength is 1"),
    ],
)
def test_odd_settings(model: Path, value: Any, words: str) -> None:
    advise(model, few_steps=value)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load(model)


def test_settings_that_are_left_out() -> None:
    assert Defaults.from_dict({"few_steps": {}}).few_steps == FewSteps("lcm_lora", "lcm", 4, 1.0)
    assert Defaults.from_dict({"few_steps": None}).few_steps is None


def test_the_built_in_model_is_small() -> None:
    sizes = {
        part.name: sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        for part in asset_path("weights").iterdir()
    }
    assert sum(sizes[part] for part in ("vae", "text_encoder", "unet")) <= 95e6
    assert sum(sizes.values()) <= 130e6
