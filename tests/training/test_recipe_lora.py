"""Training LoRAs: peft's loss and gradients, files that diffusers, peft and we read alike."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.errors import ArgumentError, CheckpointError
from ldm.pipeline import Pipeline
from ldm.training.checkpoint import checkpoints
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.loop import Trainer
from ldm.training.recipes.lora import LoraRecipe
from tests.helpers.networks import difference

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
SIZE = 64


def config_for(base: Path, source: Path, output: Path, **options: Any) -> TrainConfig:
    own = {"base": str(base), "data": {"size": SIZE, "held_out": 0}, "rank": 4}
    own |= {"save_dtype": "float32"}
    config = TrainConfig("lora", str(source), str(output), 1, 4, 1e-3)
    return replace(
        config, options=own | options, warmup=0, decay_from=1.0, mixed_precision="no",
        max_grad_norm=float("inf"), ema_decay=0.0, sample_every=10**6,
    )  # fmt: skip


def shaken(recipe: Any, seed: int = 0) -> Any:
    """Move all factors, or most gradients and all changes of a picture would be 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in recipe.model.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    return recipe


def started(recipe: LoraRecipe, config: TrainConfig) -> Trainer:
    trainer = Trainer(config, shaken(recipe))
    trainer.start()
    return trainer


def states_of(theirs: Any, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What diffusers' U-Net reads of ids (B, encoders, 77): see train_text_to_image_lora(_sdxl)."""
    if "XL" not in type(theirs).__name__:
        return theirs.text_encoder(ids[:, 0])[0], {}
    states = [
        encoder(ids[:, i], output_hidden_states=True)
        for i, encoder in enumerate((theirs.text_encoder, theirs.text_encoder_2))
    ]
    sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * len(ids))
    text = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
    return text, {"text_embeds": states[1][0], "time_ids": sizes}


def loss_of(theirs: Any, batch: dict[str, Tensor], snr_gamma: float | None = None) -> Tensor:
    """The loss of diffusers' examples, with their min-SNR."""
    schedule = diffusers.DDPMScheduler.from_config(theirs.scheduler.config)
    noisy = schedule.add_noise(batch["x0"], batch["noise"], batch["t"])
    text, added = states_of(theirs, batch["ids"].long())
    output = theirs.unet(
        noisy, batch["t"], encoder_hidden_states=text, added_cond_kwargs=added
    ).sample
    velocity = schedule.config.prediction_type == "v_prediction"
    target = batch["noise"]
    if velocity:
        target = schedule.get_velocity(batch["x0"], batch["noise"], batch["t"])
    if snr_gamma is None:
        return F.mse_loss(output.float(), target.float(), reduction="mean")
    snr = diffusers.training_utils.compute_snr(schedule, batch["t"])
    weights = torch.stack([snr, snr_gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    weights = weights / (snr + 1 if velocity else snr)
    loss = F.mse_loss(output.float(), target.float(), reduction="none")
    return (loss.mean(dim=list(range(1, loss.ndim))) * weights).mean()


def with_peft(theirs: Any, recipe: Any, **settings: Any) -> dict[str, dict[str, nn.Module]]:
    """Put peft's LoRA with our values on copies of diffusers' networks; their adapted layers."""
    layers: dict[str, dict[str, nn.Module]] = {}
    for part, adapters in recipe.model.adapters.items():
        network = getattr(theirs, part)
        known = dict(network.named_modules())
        # transformers ≥ 5.6 calls the text model of encoders without a projection otherwise
        paths = {
            path: path if path in known else path.removeprefix("text_model.")
            for path, _ in adapters.items()
        }
        config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=[*paths.values()], **settings)
        peft.inject_adapter_in_model(config, network)
        modules = dict(network.named_modules())
        layers[part] = {path: modules[other] for path, other in paths.items()}
        for path, adapter in adapters.items():
            layer = layers[part][path]
            layer.lora_A["default"].weight.data.copy_(adapter.factors["down"])
            layer.lora_B["default"].weight.data.copy_(adapter.factors["up"])
            if "dora_scale" in adapter.factors:
                lengths = layer.lora_magnitude_vector["default"].weight
                lengths.data.copy_(adapter.factors["dora_scale"].reshape(lengths.shape))
    return layers


CASES: list[tuple[str, dict[str, Any]]] = [
    ("sd", {}),
    ("sd", {"train_text_encoder": True, "min_snr_gamma": 5.0}),
    ("sd", {"dora": True, "conv_rank": 4}),
    ("sd2", {"min_snr_gamma": 5.0, "offset_noise": 0.1}),
    ("sdxl", {"train_text_encoder": True}),
]


@pytest.mark.parity
@pytest.mark.parametrize(("family", "options"), CASES)
def test_loss_and_gradients_are_those_of_diffusers_with_peft(
    bases: Any, photographs: Path, tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    """In float32, loss and every factor's gradient within 1e-5."""
    base, theirs = bases(family)
    config = config_for(base, photographs, tmp_path, **options)
    trainer = started(LoraRecipe(config), config)
    recipe = trainer.recipe
    batch = recipe.batch(0, step_generator(config.seed, 0))
    loss, _ = recipe.loss(recipe.model, batch)
    loss.backward()
    theirs = copy.deepcopy(theirs)
    for network in (theirs.unet, theirs.text_encoder, getattr(theirs, "text_encoder_2", None)):
        if network is not None:
            network.requires_grad_(False)
    layers = with_peft(theirs, recipe, use_dora=options.get("dora", False))
    expected = loss_of(theirs, batch, options.get("min_snr_gamma"))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    seen = 0.0
    for part, adapters in recipe.model.parts.items():
        for path, adapter in adapters.items():
            layer = layers[part][path]
            pairs = [("down", layer.lora_A["default"]), ("up", layer.lora_B["default"])]
            if options.get("dora"):
                pairs.append(("dora_scale", layer.lora_magnitude_vector["default"]))
            for role, module in pairs:
                mine, other = adapter.factors[role].grad, module.weight.grad
                assert mine is not None
                assert other is not None, f"{part}.{path}"
                assert (mine.reshape(other.shape) - other).abs().max() < 1e-5
                seen = max(seen, float(other.abs().max()))
    assert seen > 1e-3
    trainer.end()


def drawn_while_training(recipe: LoraRecipe, prompt: str) -> np.ndarray:
    return recipe.pipe(prompt, num_inference_steps=3, seed=1, output_type="np").images[0]


KINDS: list[dict[str, Any]] = [
    {},
    {"train_text_encoder": True, "conv_rank": 2, "conv_alpha": 1.0, "alpha": 8.0},
    {"dora": True},
    {"kind": "loha"},
    {"kind": "loha", "dora": True, "conv_rank": 3},
    {"kind": "lokr", "conv_rank": 2},
    {"kind": "lokr", "rank": 64, "factor": 4},
]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("options", KINDS)
def test_a_saved_file_draws_what_was_trained(
    bases: Any, photographs: Path, tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    """kohya's names: every key applied, and the same picture as with the adapters attached."""
    base, _ = bases(family)
    output = tmp_path / "dog"
    config = config_for(base, photographs, output, **options)
    recipe = shaken(LoraRecipe(config))
    recipe.save(recipe.model, output)
    pipe = Pipeline.from_pretrained(base, device="cpu")
    plain = pipe("a dog", num_inference_steps=3, seed=1, output_type="np").images[0]
    lora = pipe.load_lora_weights(output / "dog.safetensors")
    assert lora.applied == lora.total
    found = pipe("a dog", num_inference_steps=3, seed=1, output_type="np").images[0]
    wanted = drawn_while_training(recipe, "a dog")
    assert np.abs(found - wanted).max() < 1e-4
    assert np.abs(found - plain).max() > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("options", [{}, {"conv_rank": 2, "alpha": 8.0}, {"dora": True}])
def test_diffusers_draws_the_same_with_the_file(
    bases: Any, photographs: Path, tmp_path: Path, family: str, layout: str, options: dict[str, Any]
) -> None:
    """Latents after three steps within 1e-4."""
    if layout == "kohya" and options.get("dora"):
        pytest.skip("diffusers 0.42 reads kohya's DoRA as something else")
    base, theirs = bases(family)
    output = tmp_path / "dog"
    text = not options.get("dora")
    config = config_for(
        base, photographs, output, save_as=layout, train_text_encoder=text, **options
    )
    recipe = shaken(LoraRecipe(config))
    recipe.save(recipe.model, output)
    (file,) = output.glob("*.safetensors")
    theirs = copy.deepcopy(theirs)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(
        theirs.scheduler.config, clip_sample=False, steps_offset=1
    )
    theirs.load_lora_weights(file)
    pipe = Pipeline.from_pretrained(base, device="cpu")
    assert pipe.load_lora_weights(file).left_out == {}
    shape = (1, pipe.unet.config.in_channels, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = pipe(
        "a dog", num_inference_steps=3, latents=noise, sampler="ddim", output_type="latent",
        height=64, width=64,
    ).images  # fmt: skip
    expected = theirs(
        "a dog", num_inference_steps=3, latents=noise, output_type="latent", height=64, width=64
    ).images
    assert difference(torch.as_tensor(found), expected) < 1e-4


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [{}, {"dora": True}, {"kind": "loha", "targets": ["to_q", "to_k"]}, {"kind": "lokr"},
     {"kind": "lokr", "rank": 64, "conv_rank": 8}],
)  # fmt: skip
def test_peft_reads_its_folder(
    bases: Any, photographs: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    base, theirs = bases("sd")
    recipe = shaken(LoraRecipe(config_for(base, photographs, tmp_path, save_as="peft", **options)))
    recipe.save(recipe.model, tmp_path / "run")
    network = peft.PeftModel.from_pretrained(copy.deepcopy(theirs.unet), tmp_path / "run" / "unet")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 77, theirs.unet.config.cross_attention_dim, generator=generator)
    t = torch.tensor([10, 500])
    with torch.no_grad():
        expected = network(x, t, encoder_hidden_states=context).sample
        found = recipe.model(x, t, {"context": context})
        assert difference(theirs.unet(x, t, encoder_hidden_states=context).sample, expected) > 1e-3
    assert difference(found, expected) < 1e-5


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("options", [{}, {"kind": "lokr"}, {"kind": "loha"}, {"dora": True}])
def test_a_warm_start_goes_on_from_a_file(
    bases: Any, photographs: Path, tmp_path: Path, layout: str, options: dict[str, Any]
) -> None:
    """Also under another alpha, which then is brought into the factors."""
    if layout == "diffusers" and "kind" in options:
        pytest.skip("diffusers' layout is for LoRA and DoRA")
    base, _ = bases("sd")
    old = config_for(base, photographs, tmp_path / "old", save_as=layout, alpha=8.0, **options)
    recipe = shaken(LoraRecipe(old))
    recipe.save(recipe.model, tmp_path / "old")
    (file,) = (tmp_path / "old").glob("*.safetensors")
    wanted = drawn_while_training(recipe, "a dog")
    new = config_for(base, photographs, tmp_path / "new", alpha=2.0, **options)
    recipe = LoraRecipe(replace(new, start=str(file)))
    assert np.abs(drawn_while_training(recipe, "a dog") - wanted).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "layers"),
    [({"conv_rank": 2}, "unet"), ({"train_text_encoder": True}, "text_encoder")],
)
def test_layers_that_the_file_does_not_change_begin_anew(
    bases: Any, photographs: Path, tmp_path: Path, options: dict[str, Any], layers: str
) -> None:
    base, _ = bases("sd")
    recipe = shaken(LoraRecipe(config_for(base, photographs, tmp_path / "old")))
    recipe.save(recipe.model, tmp_path / "old")
    wanted = drawn_while_training(recipe, "a dog")
    config = config_for(base, photographs, tmp_path / "new", **options)
    with pytest.warns(UserWarning, match=rf"nothing for \d+ layers, such as {layers}\."):
        new = LoraRecipe(replace(config, start=str(tmp_path / "old" / "old.safetensors")))
    assert np.abs(drawn_while_training(new, "a dog") - wanted).max() < 1e-4


def test_a_warm_start_that_does_not_fit_is_refused(
    bases: Any, photographs: Path, tmp_path: Path
) -> None:
    base, _ = bases("sd")
    recipe = LoraRecipe(config_for(base, photographs, tmp_path / "old"))
    recipe.save(recipe.model, tmp_path / "old")
    file = str(tmp_path / "old" / "old.safetensors")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rank": 8}, "rank 4; the options make .* rank 8"),
        ({"kind": "loha"}, "is LoRA with"),
        ({"targets": ["to_q"]}, "also changes"),
    ]
    for options, message in cases:
        config = config_for(base, photographs, tmp_path / "new", **options)
        with pytest.raises(ArgumentError, match=message):
            LoraRecipe(replace(config, start=file))
    other, _ = bases("sdxl")
    with pytest.raises(CheckpointError, match="works on its own family only"):
        LoraRecipe(replace(config_for(other, photographs, tmp_path / "new"), start=file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4096}, r"rank is 4096, but \S+ has weights of .* at most \d+"),
        ({"conv_rank": 4096}, r"conv_rank is 4096, but \S+ has"),
        ({"targets": ["to_qq"]}, "targets holds 'to_qq'.* did you mean"),
        ({"targets": ["to_q["]}, "targets holds 'to_q\\['"),
        ({"kind": "loha", "save_as": "diffusers"}, "reads no loha"),
        ({"train_text_encoder": True, "save_as": "peft"}, "names of text encoders"),
        ({"name": "../x"}, "options.name is"),
        ({"alpha": 0}, "options.alpha is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    bases: Any, photographs: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    base, _ = bases("sd")
    with pytest.raises(ArgumentError, match=message):
        LoraRecipe(config_for(base, photographs, tmp_path, **options))


def test_the_file_says_what_it_is(bases: Any, photographs: Path, tmp_path: Path) -> None:
    base, _ = bases("sd2")
    output = tmp_path / "dog"
    recipe = LoraRecipe(config_for(base, photographs, output, conv_rank=2))
    recipe.save(recipe.model, output)
    from safetensors import safe_open

    with safe_open(output / "dog.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == "4"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2"}
    assert metadata["ss_resolution"] == "(64, 64)"
    assert json.loads(metadata["ss_tag_frequency"])["dog"]["tag"] == 6
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["modelspec.title"] == "dog"


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_very_tensors(
    bases: Any, photographs: Path, tmp_path: Path
) -> None:
    """SIGKILL of the command while it trains; the same command again. Bit for bit."""
    base, _ = bases("sd")
    settings = ["steps=12", "batch_size=2", "checkpoint_minutes=0", "sample_every=6"]
    settings += ["options.dropout=0.2"]
    settings += ["options.rank=2", f"options.data.size={SIZE}", "options.train_text_encoder=true"]
    command = [sys.executable, "-m", "ldm", "train", "lora", "--model", str(base), "--data"]
    command += [str(photographs), *(f"--set={each}" for each in settings), "--output"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    run = tmp_path / "killed" / "whole"  # the name is in the file
    process = subprocess.Popen(
        [*command, str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(int(p.name) >= 3 for p in checkpoints(run)):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = int(checkpoints(run)[-1].name)
    assert 3 <= done < 12
    subprocess.run([*command, str(run)], check=True, capture_output=True)
    whole, resumed = (load_file(path / "whole.safetensors") for path in (tmp_path / "whole", run))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    sample = "samples/00000012.png"
    assert (run / sample).read_bytes() == (tmp_path / "whole" / sample).read_bytes()
