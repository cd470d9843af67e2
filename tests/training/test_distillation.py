"""Distillation: losses and gradients of diffusers' LCM examples, Meng's guidance, what is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ldm.checkpoints.folder import save_component
from ldm.config import SchedulerConfig
from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline
from ldm.samplers.spacing import tcd_levels
from ldm.scheduler import DDPMScheduler
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.distillation import SkippingDDIM, consistency_pair, distance, guide
from ldm.training.loop import train_steps
from ldm.training.recipes import build_recipe
from ldm.training.recipes.distillation import DistillationRecipe
from tests.helpers.networks import difference
from tests.helpers.pictures import assert_same, draw, draw_theirs, generator, quiet

diffusers = pytest.importorskip("diffusers")
SIZE = 64
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Example:
    """The formulas of diffusers' train_lcm_distill_*.py, of one batch, in their words."""

    def __init__(self, schedule: Any, ddim_timesteps: int = 50) -> None:
        self.kind = schedule.config.prediction_type
        abar = schedule.alphas_cumprod
        self.schedule, self.alphas, self.sigmas = schedule, abar.sqrt(), (1 - abar).sqrt()
        self.topk = 1000 // ddim_timesteps
        times = np.arange(1, ddim_timesteps + 1) * self.topk - 1
        self.ddim_timesteps = torch.from_numpy(times)
        self.previous = torch.cat([abar[:1], abar[times[:-1]]])

    def at(self, values: Tensor, t: Tensor) -> Tensor:
        return values[t].reshape(-1, 1, 1, 1)

    def x0(self, output: Tensor, t: Tensor, x: Tensor) -> Tensor:
        alpha, sigma = self.at(self.alphas, t), self.at(self.sigmas, t)
        return {
            "epsilon": lambda: (x - sigma * output) / alpha,
            "sample": lambda: output,
            "v_prediction": lambda: alpha * x - sigma * output,
        }[self.kind]()

    def noise(self, output: Tensor, t: Tensor, x: Tensor) -> Tensor:
        alpha, sigma = self.at(self.alphas, t), self.at(self.sigmas, t)
        return {
            "epsilon": lambda: output,
            "sample": lambda: (x - alpha * output) / sigma,
            "v_prediction": lambda: alpha * output + sigma * x,
        }[self.kind]()

    def f(self, output: Tensor, t: Tensor, x: Tensor) -> Tensor:
        s = (10 * t).reshape(-1, 1, 1, 1)
        c_skip, c_out = 0.25 / (s**2 + 0.25), s / (s**2 + 0.25) ** 0.5
        return c_skip * x + c_out * self.x0(output, t, x)

    def loss(
        self, student: Any, teacher: Any, target: Any, x: Tensor, t: Tensor, w: Tensor,
        loss_type: str = "huber",
    ) -> Tensor:  # fmt: skip
        """student, target: (x, t) → output; teacher: (x, t) → (conditional, unconditional)."""
        index = (t + 1) // self.topk - 1
        assert torch.equal(self.ddim_timesteps[index], t)
        model_pred = self.f(student(x, t), t, x)
        w = w.reshape(-1, 1, 1, 1)
        with torch.no_grad():
            conditional, unconditional = teacher(x, t)
            both = [(self.x0(o, t, x), self.noise(o, t, x)) for o in (conditional, unconditional)]
            (x0, noise), (x0_u, noise_u) = both
            x0, noise = x0 + w * (x0 - x0_u), noise + w * (noise - noise_u)
            abar = self.at(self.previous, index)
            x_prev = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
            end = (t - self.topk).clamp(min=0)
            aim = self.f(target(x_prev, end), end, x_prev)
        if loss_type == "l2":
            return F.mse_loss(model_pred, aim)
        return torch.mean(torch.sqrt((model_pred - aim) ** 2 + 0.001**2) - 0.001)


@pytest.mark.parity
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_consistency_loss_is_diffusers(kind: str) -> None:
    """Every step of the solver with any output: within 1e-5 of values up to 15."""
    ours = DDPMScheduler(SchedulerConfig(**SD, prediction_type=kind))
    theirs = Example(diffusers.DDPMScheduler(**SD, prediction_type=kind))
    solver = SkippingDDIM(ours, 50)
    t = solver.start(torch.arange(0, 1000, 20))
    x, a, u, shift = torch.randn(4, 50, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    w = torch.linspace(0, 15, 50)
    leaf = shift.requires_grad_()
    other = leaf.detach().clone().requires_grad_()

    def network(leaf: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, t: torch.tanh(x) + leaf

    predicted, target = consistency_pair(
        solver, network(leaf), lambda x, t: guide(a, u, w), network(leaf), x, t
    )
    assert not target.requires_grad
    loss = distance(predicted, target, "huber").mean()
    expected = theirs.loss(network(other), lambda x, t: (a, u), network(other), x, t, w)
    loss.backward()
    expected.backward()
    assert abs(float(loss - expected)) <= 1e-5
    assert difference(50 * leaf.grad, 50 * other.grad) <= 1e-5
    assert t[-1] == 999
    assert solver.end(t)[:3].tolist() == [0, 19, 39]


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_true_trajectory_has_no_loss(kind: str) -> None:
    """A network that knows the one picture is consistent, for LCM nearly, and for TCD exactly."""
    scheduler = DDPMScheduler(SchedulerConfig(**SD, prediction_type=kind))
    solver = SkippingDDIM(scheduler, 50)
    t = solver.start(torch.arange(0, 1000, 20))
    x0, noise = torch.randn(2, 50, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    x = scheduler.add_noise(x0, noise, t)

    def knows(x: Tensor, t: Tensor) -> Tensor:
        return scheduler.from_x0(x0, x, scheduler.levels(t, x))

    s = solver.trajectory(t, torch.rand(50, generator=torch.Generator().manual_seed(1)))
    assert (s <= solver.end(t)).all()
    predicted, target = consistency_pair(solver, knows, knows, knows, x, t, s)
    assert difference(predicted, target) < 2e-4  # float32 at ᾱ of almost 1
    assert difference(predicted, scheduler.add_noise(x0, noise, s)) < 2e-4
    clean, target = consistency_pair(solver, knows, knows, knows, x, t)
    assert difference(clean[1:], target[1:]) < 2e-3
    assert difference(clean, x0) < 2e-2  # c_skip


def test_a_mask_weighs_the_distance() -> None:
    a, b = torch.randn(2, 3, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 1, 5, 7, generator=torch.Generator().manual_seed(1))
    expected = (mask * (a - b) ** 2).mean((1, 2, 3))
    assert torch.allclose(distance(a, b, "l2", mask=mask), expected)
    assert torch.allclose(distance(a, a, "huber"), torch.zeros(3), atol=1e-9)


def test_times_of_the_trajectory() -> None:
    """All ends of steps at or below that of this step, equally often."""
    solver = SkippingDDIM(DDPMScheduler(SchedulerConfig(**SD)), 50)
    share = torch.arange(100) / 100
    assert solver.trajectory(torch.full((100,), 19), share).unique().tolist() == [0]
    found, counts = solver.trajectory(torch.full((100,), 99), share).unique(return_counts=True)
    assert found.tolist() == [0, 19, 39, 59, 79]
    assert counts.tolist() == [20] * 5
    with pytest.raises(ArgumentError, match=r"num_ddim_timesteps is 1001; it must be in \[1, 1000"):
        SkippingDDIM(solver.scheduler, 1001)


@pytest.mark.parametrize("steps", [50, 25, 7])
def test_phases_are_the_sampler_s_steps(steps: int) -> None:
    """Steps of a phase that begins where the sampler is called end where it goes to."""
    scheduler = DDPMScheduler(SchedulerConfig(**SD, original_inference_steps=steps))
    solver = SkippingDDIM(scheduler, steps)
    every = solver.start(torch.arange(0, 1000))
    for phases in range(1, 8):
        ends = solver.phase_end(every, phases)
        assert (ends <= solver.end(every)).all()
        levels = tcd_levels(scheduler, phases, "")
        begins = torch.tensor([int(a.t) for a, _ in levels])
        assert ends.unique(sorted=True).tolist() == [0, *begins[1:].flip(0).tolist()]
        assert solver.phase_end(begins, phases).tolist() == [*begins[1:].tolist(), 0]
    assert (solver.phase_end(every, 1) == 0).all()


def test_of_phases_only_the_ends_are_learnt(bases: Any, pictures: Path, tmp_path: Path) -> None:
    """The loss is that between two points of the phase's end, by the teacher's step between."""
    base, _ = bases("sd")
    given: dict[str, Any] = {"objective": "tcd", "phases": 3, "num_ddim_timesteps": 50}
    recipe: Any = build_recipe(config_for("lcm", base, pictures, tmp_path, **given))
    recipe.prepare(Accelerator(cpu=True))
    batch = recipe.batch(0, step_generator(0, 0))
    ends = (679, 339, 0)
    for t, s in zip(batch["t"].tolist(), batch["s"].tolist(), strict=True):
        assert s == next(end for end in ends if end < t)
    recipe.follow(copy.deepcopy(recipe.model))
    loss, _ = recipe.loss(recipe.model, batch)
    inputs, x, t, s = recipe.inputs(batch), recipe.x_t(batch), batch["t"], batch["s"]
    with torch.no_grad():
        end = (t - 20).clamp(min=0)
        taught = recipe.teach(x, t, inputs, batch["w"])
        x_end = moved(recipe.scheduler, taught, x, t, end)
        want = moved(recipe.scheduler, recipe.model(x_end, end, inputs), x_end, end, s)
        got = moved(recipe.scheduler, recipe.model(x, t, inputs), x, t, s)
    expected = (((got - want).square() + 0.001**2).sqrt() - 0.001).mean()
    assert abs(float(loss - expected)) <= 1e-6 and float(loss) > 0
    assert recipe.usage() == {"sampler": "tcd", "num_inference_steps": 3, "guidance_scale": 1.0}


def moved(scheduler: DDPMScheduler, output: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DDIM's step by ε, of ᾱ as the paper writes it."""
    a, b = (scheduler.alphas_cumprod[each].float().view(-1, 1, 1, 1) for each in (t, s))
    clean = (x - (1 - a).sqrt() * output) / a.sqrt()
    return b.sqrt() * clean + (1 - b).sqrt() * output


# The recipes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        small = Image.fromarray(np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return folder


def config_for(
    recipe: str, base: Path, source: Path, output: Path, steps: int = 1, **options: Any
) -> TrainConfig:
    own = {"base": str(base), "data": {"size": SIZE, "held_out": 0}, "prompts": ["a", "b"]}
    if options.get("train", "lora") == "lora":
        own |= {"rank": 4, "save_dtype": "float32"}
    config = TrainConfig(recipe, str(source), str(output), steps, 4, 1e-3)
    return replace(
        config, options=own | {"save_dtype": "float32"} | options, warmup=0, decay_from=1.0,
        mixed_precision="no", max_grad_norm=float("inf"), ema_decay=0.5,
    )  # fmt: skip


def prepared(config: TrainConfig, seed: int = 5) -> DistillationRecipe:
    """A recipe whose student is not its teacher any more."""
    recipe: Any = build_recipe(config)
    recipe.prepare(Accelerator(cpu=True))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in recipe.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    recipe.follow(copy.deepcopy(recipe.model))
    return recipe


def encoded(theirs: Any, ids: Tensor, size: int = SIZE) -> dict[str, Any]:
    """What diffusers' U-Net reads of captions and, of "", in its examples."""
    if "XL" not in type(theirs).__name__:
        return {"encoder_hidden_states": theirs.text_encoder(ids[:, 0])[0]}
    states = [
        encoder(ids[:, i], output_hidden_states=True)
        for i, encoder in enumerate((theirs.text_encoder, theirs.text_encoder_2))
    ]
    sizes = torch.tensor([[size, size, 0, 0, size, size]] * len(ids))
    return {
        "encoder_hidden_states": torch.cat([state.hidden_states[-2] for state in states], dim=-1),
        "added_cond_kwargs": {"text_embeds": states[1][0], "time_ids": sizes},
    }


def nothing_like(theirs: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The examples' unconditional states: of "", for XL zeros."""
    if "XL" in type(theirs).__name__:
        added = dict(given["added_cond_kwargs"])
        added["text_embeds"] = torch.zeros_like(added["text_embeds"])
        zeros = torch.zeros_like(given["encoder_hidden_states"])
        return {"encoder_hidden_states": zeros, "added_cond_kwargs": added}
    empty = theirs.tokenizer("", padding="max_length", max_length=77, return_tensors="pt")
    states = theirs.text_encoder(empty.input_ids)[0]
    return {"encoder_hidden_states": states.expand_as(given["encoder_hidden_states"])}


def embedded(w: Tensor, width: int) -> Tensor:
    """The examples' guidance_scale_embedding."""
    frequencies = torch.exp(-np.log(10000.0) / (width // 2 - 1) * torch.arange(width // 2))
    angles = 1000 * w[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def their_student(recipe: Any, theirs: Any, folder: Path) -> Any:
    """diffusers' U-Net that computes as the student."""
    if recipe.options.train == "full":
        save_component(recipe.model.parts["unet"], folder / "student", torch.float32)
        return diffusers.UNet2DConditionModel.from_pretrained(folder / "student").train()
    recipe.options.save_as = "diffusers"
    recipe.save(recipe.model, folder)
    pipe = copy.deepcopy(theirs)
    pipe.load_lora_weights(folder / "pytorch_lora_weights.safetensors", adapter_name="x")
    pipe.unet.requires_grad_(False)
    for name, parameter in pipe.unet.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return pipe.unet


def their_gradients(unet: Any) -> dict[str, Tensor]:
    named = unet.named_parameters()
    return {
        name.replace(".lora_A.x.weight", "/down").replace(".lora_B.x.weight", "/up"): value.grad
        for name, value in named
        if value.grad is not None
    }


def our_gradients(recipe: Any) -> dict[str, Tensor]:
    part = recipe.model.parts["unet"]
    if recipe.options.train == "full":
        return {name: value.grad for name, value in part.named_parameters()}
    return {
        f"{path}/{role}": value.grad
        for path, adapter in part.items()
        for role, value in adapter.factors.items()
    }


def compare_gradients(recipe: Any, unet: Any) -> None:
    ours, theirs = our_gradients(recipe), their_gradients(unet)
    assert ours.keys() == theirs.keys()
    largest = max(value.abs().max().item() for value in theirs.values())
    assert largest > 1e-4
    for name, value in theirs.items():  # some are large: of ε at α = 0.07, the loss is x̂₀'s
        apart = (ours[name] - value).abs().max().item()
        assert apart <= 1e-5 * max(1.0, value.abs().max().item()), f"{name}: {apart:.1e}"
        assert apart <= 1e-3 * largest, f"{name}: {apart:.1e} of {largest:.1e}"


def their_predictions(
    recipe: Any, theirs: Any, unet: Any, batch: dict[str, Tensor]
) -> tuple[Any, Any]:
    """diffusers' student and teacher of a batch."""
    with torch.no_grad():
        given = encoded(theirs, batch["ids"].long())
        empty = nothing_like(theirs, given)
    cond = None
    if recipe.options.train == "full":
        cond = embedded((batch["w"] + 1) - 1, recipe.options.time_cond_proj_dim)
    student = lambda x, t: unet(x, t, timestep_cond=cond, **given).sample  # noqa: E731
    teacher = lambda x, t: [theirs.unet(x, t, **each).sample for each in (given, empty)]  # noqa: E731
    return student, teacher


@pytest.mark.parity
@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl"])
def test_loss_and_gradients_are_those_of_diffusers_example(
    bases: Any, pictures: Path, tmp_path: Path, family: str, train: str
) -> None:
    """In float32 the loss within 1e-5, as are gradients, of 1; ε of SD 1 and XL, v of SD 2."""
    base, theirs = bases(family)
    config = config_for("lcm", base, pictures, tmp_path / "run", train=train)
    if train == "full":  # float32 rounds the angles of w's embedding, 1000 w, the more the larger
        config.options.update(w_min=0.0, w_max=1.0)
    recipe: Any = prepared(config)
    batch = recipe.batch(3, step_generator(0, 3))
    assert recipe.options.w_min <= batch["w"].min() < batch["w"].max() <= recipe.options.w_max
    unet = their_student(recipe, theirs, tmp_path)
    student, teacher = their_predictions(recipe, theirs, unet, batch)
    schedule = diffusers.DDPMScheduler.from_config(theirs.scheduler.config)
    noisy = schedule.add_noise(batch["x0"], batch["noise"], batch["t"])
    example = Example(schedule)
    for kind in ("huber", "l2"):
        recipe.options.loss_type = kind
        loss, _ = recipe.loss(recipe.model, batch)
        expected = example.loss(student, teacher, student, noisy, batch["t"], batch["w"], kind)
        assert float(loss) == pytest.approx(float(expected), rel=1e-6, abs=1e-5)
    # Huber's gradient is that of the sign where predictions are apart by rounding alone.
    loss.backward()
    expected.backward()
    compare_gradients(recipe, unet)


@pytest.mark.parity
@pytest.mark.parametrize(("family", "train"), [("sd", "full"), ("sd2", "full"), ("sdxl", "lora")])
def test_guidance_is_distilled(
    bases: Any, pictures: Path, tmp_path: Path, family: str, train: str
) -> None:
    """‖ŷ_w − (y_c + w (y_c − y_∅))‖² by diffusers' networks; gradients within 1e-5."""
    base, theirs = bases(family)
    scales = {"w_min": 3.0, "w_max": 3.0} if train == "lora" else {"w_min": 0.0, "w_max": 1.0}
    config = config_for("guidance_distillation", base, pictures, tmp_path / "run", train=train)
    config.options.update(scales)
    recipe = prepared(config)
    batch = recipe.batch(0, step_generator(0, 0))
    loss, _ = recipe.loss(recipe.model, batch)
    loss.backward()
    unet = their_student(recipe, theirs, tmp_path)
    student, teacher = their_predictions(recipe, theirs, unet, batch)
    schedule = diffusers.DDPMScheduler.from_config(theirs.scheduler.config)
    noisy = schedule.add_noise(batch["x0"], batch["noise"], batch["t"])
    with torch.no_grad():
        conditional, unconditional = teacher(noisy, batch["t"])
    aim = conditional + batch["w"].view(-1, 1, 1, 1) * (conditional - unconditional)
    expected = F.mse_loss(student(noisy, batch["t"]), aim)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6, abs=1e-6)
    compare_gradients(recipe, unet)


# What is saved


def run(config: TrainConfig, stops: tuple[int, ...] = ()) -> None:
    """Train to the end, in sessions that end at ``stops``."""
    for last in (*stops, config.steps):
        torch.manual_seed(0)  # of the new factors, as ``ldm train`` has it
        for state in train_steps(config, build_recipe(config)):
            state.stop = state.step == last


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("lcm", {"train": "lora"}),
        ("lcm", {"train": "full", "objective": "tcd"}),
        ("lcm", {"objective": "tcd", "phases": 2, "train": "lora"}),
        ("guidance_distillation", {"train": "full"}),
    ],
)
def test_a_run_resumes_exactly(
    bases: Any, pictures: Path, tmp_path: Path, recipe: str, options: dict[str, Any]
) -> None:
    base, _ = bases("sd2")
    for name, stops in (("a", ()), ("b", (1, 2))):
        config = config_for(recipe, base, pictures, tmp_path / name, 4, **options)
        own = {"name": "x", "num_inference_steps": 2}
        run(replace(config, options=config.options | own), stops)
    path = "x.safetensors"
    if options["train"] == "full":
        path = "unet/diffusion_pytorch_model.safetensors"
    files = [load_file(tmp_path / name / path) for name in ("a", "b")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert Image.open(tmp_path / "a/samples/00000004.png").size == (2 * SIZE, SIZE)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_diffusers_draws_with_an_lcm_lora(
    bases: Any, pictures: Path, tmp_path: Path, family: str, layout: str
) -> None:
    """The same picture in 4 steps without guidance; the file says how to draw with it."""
    base, _ = bases(family)
    output = tmp_path / "fast"
    run(config_for("lcm", base, pictures, output, 3, save_as=layout))
    (path,) = output.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.usage_hint"].startswith("sampler lcm, 4 to 8 steps")
    ours = Pipeline.from_pretrained(base, device="cpu")
    arguments = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": SIZE, "width": SIZE}
    plain = draw(ours, seed=3, sampler="lcm", **arguments)
    ours.load_lora_weights(path)
    pipe = quiet(diffusers.DiffusionPipeline.from_pretrained(base))
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(path)
    want = draw_theirs(pipe, generator=generator(3), **arguments)
    got = draw(ours, seed=3, sampler="lcm", **arguments)
    assert_same(got, want)
    assert difference(got[0], plain[0]) > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize(
    ("family", "recipe", "options", "classes"),
    [
        ("sd2", "lcm", {}, ("LatentConsistencyModelPipeline", "LCMScheduler")),
        ("sdxl", "lcm", {}, ("StableDiffusionXLPipeline", "LCMScheduler")),
        ("sd", "lcm", {"objective": "tcd"}, ("StableDiffusionPipeline", "TCDScheduler")),
        ("sd", "guidance_distillation", {}, ("StableDiffusionPipeline", "DDIMScheduler")),
    ],
)
def test_diffusers_draws_with_a_whole_model(
    bases: Any, pictures: Path, tmp_path: Path, family: str, recipe: str,
    options: dict[str, Any], classes: tuple[str, str],
) -> None:  # fmt: skip
    """The same picture at two guidance scales, which are read; its defaults are few steps."""
    base, _ = bases(family)
    run(config_for(recipe, base, pictures, tmp_path, 3, train="full", **options))
    ours = Pipeline.from_pretrained(tmp_path, device="cpu")
    theirs = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert (type(theirs).__name__, type(theirs.scheduler).__name__) == classes
    assert theirs.unet.config.time_cond_proj_dim == 256
    assert ours.defaults.num_inference_steps == (4 if recipe == "lcm" else 50)
    assert ours.defaults.guidance_scale == (5.0 if family == "sdxl" else 7.5)
    drawn = []
    for scale in (4.0, 12.0):
        arguments = {"num_inference_steps": 4, "guidance_scale": scale}
        arguments |= {"height": SIZE, "width": SIZE}
        drawn.append(draw(ours, seed=3, **arguments))
        assert_same(drawn[-1], draw_theirs(theirs, generator=generator(3), **arguments))
    assert difference(drawn[0][0], drawn[1][0]) > 1e-3


def test_a_whole_student_begins_as_its_base(bases: Any, pictures: Path, tmp_path: Path) -> None:
    """At any guidance scale, until it learns; and its teacher does not change."""
    base, _ = bases("sd")
    recipe: Any = build_recipe(config_for("lcm", base, pictures, tmp_path, train="full"))
    recipe.prepare(Accelerator(cpu=True))
    batch = recipe.batch(0, step_generator(0, 0))
    x, given = recipe.x_t(batch), recipe.conditions(batch)
    student = recipe.model(x, batch["t"], recipe.inputs(batch))
    assert difference(student.detach(), recipe.teacher(x, batch["t"], **given)) < 1e-5
    before = copy.deepcopy(recipe.teacher.state_dict())
    recipe.follow(copy.deepcopy(recipe.model))
    recipe.loss(recipe.model, batch)[0].backward()
    assert recipe.model.parts["unet"].time_embedding.cond_proj.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in recipe.teacher.parameters())
    assert all(torch.equal(before[n], v) for n, v in recipe.teacher.state_dict().items())


def test_the_teacher_of_a_lora_has_no_adapters(bases: Any, pictures: Path, tmp_path: Path) -> None:
    """One network is both: after the teacher's pass it has the adapters again."""
    recipe: Any = prepared(config_for("lcm", bases("sd")[0], pictures, tmp_path))
    batch = recipe.batch(0, step_generator(0, 0))
    x, given = recipe.x_t(batch), recipe.inputs(batch)
    apart = recipe.model(x, batch["t"], given)
    taught = recipe.teach(x, batch["t"], given, torch.zeros(4))
    fresh = Pipeline.from_pretrained(bases("sd")[0], device="cpu").unet
    assert difference(taught, fresh(x, batch["t"], **given)) < 1e-5
    assert difference(apart.detach(), taught) > 1e-3
    assert torch.equal(recipe.model(x, batch["t"], given), apart)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("lcm", {"w_min": 4.0, "w_max": 3.0}, "w_min is 4.0, but options.w_max 3.0"),
        ("lcm", {"min_snr_gamma": 5.0}, "min_snr_gamma weighs no consistency loss"),
        ("lcm", {"num_ddim_timesteps": 2000}, r"num_ddim_timesteps is 2000; it must be in \[1, 10"),
        ("lcm", {"objective": "lmc"}, "objective is 'lmc'; expected 'lcm' or 'tcd'"),
        ("lcm", {"phases": 4}, 'only objective = "tcd" knows more than the end'),
        ("lcm", {"phases": 0, "objective": "tcd"}, r"phases is 0; it must be in \[1, inf\)"),
        ("lcm", {"phases": 51, "objective": "tcd"}, "phases is 51; it must be at most .* 50"),
        (
            "lcm",
            {"phases": 4, "objective": "tcd", "num_ddim_timesteps": 25},
            "num_ddim_timesteps is 25, but with .* original_inference_steps = 50, .* give 50",
        ),
        ("guidance_distillation", {}, "a LoRA learns one guidance scale, but options.w_min is 3.0"),
    ],
)
def test_options_that_cannot_work(
    bases: Any, pictures: Path, tmp_path: Path, recipe: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_recipe(config_for(recipe, bases("sd")[0], pictures, tmp_path, **options))


def test_a_lora_goes_on_from_another(bases: Any, pictures: Path, tmp_path: Path) -> None:
    """Such as one of another number of the solver's steps; a whole student cannot."""
    base = bases("sd")[0]
    run(config_for("lcm", base, pictures, tmp_path / "a", 2))
    start = str(tmp_path / "a/a.safetensors")
    config = replace(config_for("lcm", base, pictures, tmp_path / "b"), start=start)
    recipe: Any = build_recipe(config)
    learnt = load_file(start)
    ups = [float(v.abs().sum()) for name, v in learnt.items() if name.endswith("lora_up.weight")]
    own = [float(f.factors["up"].abs().sum()) for _, f in recipe.model.parts["unet"].items()]
    assert sum(ups) > 0
    assert sum(own) == pytest.approx(sum(ups), rel=1e-5)
    whole = config_for("lcm", base, pictures, tmp_path / "c", train="full")
    with pytest.raises(ArgumentError, match="start is given, but a whole student begins as"):
        build_recipe(replace(whole, start=start))


def test_a_base_of_few_steps_is_a_warning(bases: Any, pictures: Path, tmp_path: Path) -> None:
    """It can be distilled all the same: what reads the scale itself needs no second pass."""
    with pytest.warns(UserWarning, match="draws in few steps already"):
        recipe: Any = build_recipe(config_for("lcm", bases("lcm")[0], pictures, tmp_path))
    recipe.prepare(Accelerator(cpu=True))
    batch = recipe.batch(0, step_generator(0, 0))
    x, given = recipe.x_t(batch), recipe.inputs(batch)
    assert torch.equal(given["guidance_scale"], batch["w"] + 1)
    taught = recipe.teach(x, batch["t"], given, batch["w"])
    assert difference(taught, recipe.model(x, batch["t"], given).detach()) < 1e-5
