"""Full fine-tuning: diffusers' loss and gradients, what is saved, and exact resumption."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm.errors import ArgumentError, CheckpointError
from ldm.pipeline import Pipeline
from ldm.training.checkpoint import checkpoints
from ldm.training.config import TrainConfig, as_json
from ldm.training.data import step_generator
from ldm.training.loop import Trainer, train_steps
from ldm.training.recipes.full import FullRecipe
from tests.helpers.networks import difference
from tests.loading.test_single_file import files  # noqa: F401  # a fixture
from tests.training.test_recipe_lora import loss_of
from tests.training.test_run import assert_same_state, wait_for

# ruff: noqa: F811
diffusers = pytest.importorskip("diffusers")
SIZE = 64
ALL = ["unet", "text_encoder"]


def config_for(base: Path, source: Path, output: Path, **options: Any) -> TrainConfig:
    own = {"base": str(base), "data": {"size": SIZE, "held_out": 0}, "save_dtype": "float32"}
    config = TrainConfig("full", str(source), str(output), 1, 4, 1e-3)
    return replace(
        config, options=own | options, warmup=0, decay_from=1.0, mixed_precision="no",
        max_grad_norm=float("inf"), ema_decay=0.0, sample_every=10**6,
    )  # fmt: skip


CASES: list[tuple[str, dict[str, Any]]] = [
    ("sd", {"train": ALL}),
    ("sd", {"min_snr_gamma": 5.0, "gradient_checkpointing": True}),
    ("sd2", {"train": ALL, "min_snr_gamma": 5.0, "offset_noise": 0.1}),  # of v
    ("sdxl", {"train": [*ALL, "text_encoder_2"], "min_snr_gamma": 5.0}),
    ("sdxl", {"offset_noise": 0.1, "gradient_checkpointing": True}),
]


@pytest.mark.parity
@pytest.mark.parametrize(("family", "options"), CASES)
def test_loss_and_gradients_are_those_of_diffusers(
    bases: Any, photographs: Path, tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    """By train_text_to_image(_sdxl)'s formula in float32: each gradient within 1e-5."""
    base, theirs = bases(family)
    config = config_for(base, photographs, tmp_path, **options)
    trainer = Trainer(config, FullRecipe(config))
    trainer.start()
    recipe = trainer.recipe
    batch = recipe.batch(0, step_generator(config.seed, 0))
    loss, _ = recipe.loss(recipe.model, batch)
    loss.backward()
    theirs = copy.deepcopy(theirs)
    parts = options.get("train", ["unet"])
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(theirs, name, None) is not None:
            getattr(theirs, name).requires_grad_(name in parts)
    expected = loss_of(theirs, batch, options.get("min_snr_gamma"))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    compared, largest = 0, 0.0
    for name in parts:
        own = dict(recipe.model.parts[name].named_parameters())
        for path, other in getattr(theirs, name).named_parameters():
            # transformers ≥ 5.6 calls the text model of encoders without a projection otherwise
            mine = own[path] if path in own else own[f"text_model.{path}"]
            assert (other.grad is None) == (mine.grad is None) == (not mine.requires_grad), path
            if other.grad is not None:
                assert (mine.grad - other.grad).abs().max() < 1e-5, path
                compared, largest = compared + 1, max(largest, float(other.grad.abs().max()))
    assert compared > 60 and largest > 1e-2
    trainer.end()


def test_offset_noise_is_one_number_for_each_channel(
    bases: Any, photographs: Path, tmp_path: Path
) -> None:
    """As their --noise_offset: noise += offset · randn(B, C, 1, 1)."""
    noises = []
    for offset in (0.0, 0.1):
        recipe = FullRecipe(config_for(bases("sd")[0], photographs, tmp_path, offset_noise=offset))
        trainer = Trainer(recipe.config, recipe)
        recipe.prepare(trainer.accelerator)
        noises.append(recipe.batch(0, step_generator(0, 0))["noise"])
    added = noises[1] - noises[0]
    assert (added - added.mean((2, 3), keepdim=True)).abs().max() < 1e-6
    assert 0.04 < added.mean((2, 3)).std() < 0.2


def trained(config: TrainConfig, steps: int | None = None) -> FullRecipe:
    torch.manual_seed(config.seed)
    recipe = FullRecipe(config)
    for state in train_steps(config, recipe):
        state.stop = state.step == steps
    return recipe


def latents_of(pipe: Any, ours: bool) -> torch.Tensor:
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    more = {"sampler": "ddim"} if ours else {}
    return torch.as_tensor(
        pipe("a dog", num_inference_steps=3, latents=noise, output_type="latent", height=64,
             width=64, **more).images
    )  # fmt: skip


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
@pytest.mark.parametrize("save_as", ["", "model.safetensors"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_draws_the_same_with_what_is_saved(
    files: Any, photographs: Path, tmp_path: Path, family: str, save_as: str
) -> None:
    """From a single file, to a folder or a file; latents after three steps within 1e-4."""
    _, theirs, base = files(family)
    output = tmp_path / "run"
    config = config_for(base, photographs, output, train=ALL, save_as=save_as)
    recipe = trained(config)
    wanted = latents_of(recipe.pipe, True)
    begun = latents_of(Pipeline.from_pretrained(base, device="cpu"), True)
    assert difference(wanted, begun) > 1e-3
    if save_as:
        theirs.save_pretrained(tmp_path / "config")
        loaded = type(theirs).from_single_file(
            output / save_as, config=str(tmp_path / "config"), local_files_only=True,
            torch_dtype=torch.float32,
        )  # fmt: skip
    else:
        loaded = type(theirs).from_pretrained(output)
    loaded.scheduler = diffusers.DDIMScheduler.from_config(
        theirs.scheduler.config, clip_sample=False, steps_offset=1
    )
    assert difference(latents_of(loaded, False), wanted) < 1e-4
    ours = Pipeline.from_pretrained(output / save_as if save_as else output, device="cpu")
    assert difference(latents_of(ours, True), wanted) < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_not_trained_is_saved_as_it_was(
    bases: Any, photographs: Path, tmp_path: Path, dtype: str
) -> None:
    """Its numbers and their format; what is trained is in the format of the options."""
    _, theirs = bases("sd")
    base = tmp_path / "base"
    copy.deepcopy(theirs).to(torch.float16).save_pretrained(base)
    output = tmp_path / "run"
    trained(config_for(base, photographs, output, save_dtype=dtype))
    for part, file in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        old, new = (load_file(each / part / f"{file}.safetensors") for each in (base, output))
        known = {key.removeprefix("text_model."): value for key, value in old.items()}
        assert len(new) == len(known)
        for key, value in new.items():
            was = known[key.removeprefix("text_model.")]
            assert value.dtype == was.dtype == torch.float16 and torch.equal(value, was), key
    unet = load_file(output / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in unet.values()} == {getattr(torch, dtype)}


def test_a_run_resumes_exactly_and_draws_with_its_average(
    bases: Any, photographs: Path, tmp_path: Path
) -> None:
    base, _ = bases("sd")
    settings = {"steps": 4, "ema_decay": 0.9, "sample_every": 2}
    options = {"train": ALL, "prompts": ["a", "b"], "num_inference_steps": 2}
    options["gradient_checkpointing"] = True
    whole, parts = (
        replace(config_for(base, photographs, tmp_path / name, **options), **settings)
        for name in ("whole", "parts")
    )
    recipe = trained(whole)
    trained(parts, 2)
    trained(parts)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    files = [
        load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors")
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    # What is saved is the average, not the weights of the last step.
    own = recipe.model.parts["unet"].state_dict()
    assert any(not torch.equal(own[name], value) for name, value in files[0].items())
    sample = (tmp_path / "whole/samples/00000004.png").read_bytes()
    assert sample == (tmp_path / "parts/samples/00000004.png").read_bytes()


SCRIPT = """
import json, sys, torch
from ldm.training.config import TrainConfig
from tests.training.test_recipe_full import trained
torch.set_num_threads(1)
trained(TrainConfig(**json.loads(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the run goes on")
def test_a_killed_run_ends_as_one_that_was_not(
    bases: Any, photographs: Path, tmp_path: Path
) -> None:
    """SIGKILL, then on to the end: bit for bit."""
    base, _ = bases("sd")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole, killed = (
        replace(config_for(base, photographs, tmp_path / name), steps=40)
        for name in ("whole", "killed")
    )
    often = replace(killed, checkpoint_minutes=0.0, sample_every=1000)
    root = Path(__file__).parents[2]
    values = as_json(often) | {"max_grad_norm": 1e9}
    whole, killed = (replace(config, max_grad_norm=1e9) for config in (whole, killed))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(values)], cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: len(checkpoints(tmp_path / "killed")) > 1, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert 0 < int(checkpoints(tmp_path / "killed")[-1].name) < 40
    trained(replace(killed, sample_every=1000))
    trained(replace(whole, sample_every=1000))
    torch.set_num_threads(threads)
    assert_same_state(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": ["unett"]}, r"options.train holds 'unett'; did you mean 'unet'\?"),
        ({"train": ["unet", "text_encoder_2"]}, "options.train holds 'text_encoder_2'; did you"),
        ({"train": []}, "options.train is empty; give some of unet, text_encoder"),
        ({"save_as": "../x.safetensors"}, "options.save_as is '../x.safetensors'; give a file's"),
        ({"save_as": "x.ckpt"}, "options.save_as is 'x.ckpt'"),
        ({"save_dtype": "float8"}, "options.save_dtype is 'float8'; expected 'float16' or"),
        ({"train": ["text_encoder"], "keep_contexts": True}, "keep_contexts keeps the states"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    bases: Any, photographs: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        FullRecipe(config_for(bases("sd")[0], photographs, tmp_path, **options))


def test_a_start_and_a_file_that_cannot_hold_it_are_refused(
    bases: Any, photographs: Path, tmp_path: Path
) -> None:
    """Before the training, not after it."""
    config = config_for(bases("sd")[0], photographs, tmp_path)
    with pytest.raises(ArgumentError, match="start are not for this recipe, which trains"):
        FullRecipe(replace(config, start="x"))
    with pytest.raises(CheckpointError, match="reads texts of width 32; single files are known"):
        FullRecipe(config_for(bases("sd")[0], photographs, tmp_path, save_as="x.safetensors"))


def test_a_base_of_few_steps_is_noticed(bases: Any, photographs: Path, tmp_path: Path) -> None:
    _, theirs = bases("sd")
    with pytest.raises(ArgumentError, match="an LCM whose U-Net reads the guidance scale"):
        FullRecipe(config_for(bases("lcm")[0], photographs, tmp_path))
    turbo = tmp_path / "sd-Turbo"
    theirs.save_pretrained(turbo)
    with pytest.warns(UserWarning, match=r"few steps \(its name holds 'Turbo'\)"):
        FullRecipe(config_for(turbo, photographs, tmp_path))
    other = copy.deepcopy(theirs)
    other.scheduler = diffusers.LCMScheduler.from_config(theirs.scheduler.config)
    other.save_pretrained(tmp_path / "plain")
    with pytest.warns(UserWarning, match=r"\(its scheduler is LCMScheduler\)"):
        FullRecipe(config_for(tmp_path / "plain", photographs, tmp_path))
