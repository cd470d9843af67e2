"""Classifier guidance against closed forms: classes that are Gaussians, so all is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.classes.classifier import Classifier
from ldm.classes.guidance import ClassifierGuidance
from ldm.config import ClassifierConfig, SchedulerConfig
from ldm.denoiser import Denoiser
from ldm.errors import ArgumentError, CheckpointError
from ldm.guidance import Guidance
from ldm.pipeline import Pipeline
from ldm.samplers import bind, plan, sample
from ldm.scheduler import DDPMScheduler, Level
from ldm.text.conditioning import Conditioning, Prompted, Script
from tests.classes.test_labels import pipeline
from tests.helpers.networks import difference, randomize

M, S = 0.8, 0.3  # class 0 is N(−M, S²), class 1 N(M, S²)
COUNT = 4000


class Classes(nn.Module):
    """log p(y | x_t) of each picture's one pixel, up to a constant."""

    def __init__(self, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.like = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        (at,) = t.unique().tolist()
        level = self.scheduler.level(at)
        spread = (level.alpha * S) ** 2 + level.sigma**2
        means = torch.tensor([-M, M]) * level.alpha
        return -((x.flatten(1) - means) ** 2) / (2 * spread)


class Mixture(nn.Module):
    """The U-Net of both classes together: ε̂ of E[x₀ | x_t], and v."""

    def __init__(self, scheduler: DDPMScheduler, channels: int = 1) -> None:
        super().__init__()
        self.config = SimpleNamespace(time_cond_proj_dim=None)
        self.classes, self.scheduler, self.channels = Classes(scheduler), scheduler, channels
        self.like = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        (at,) = t.unique().tolist()
        level = self.scheduler.level(at)
        share = self.classes(x, t).softmax(dim=1)
        each = torch.stack([mean_given(x.flatten(), level, m) for m in (-M, M)], dim=1)
        x0 = (share * each).sum(dim=1).view_as(x)
        eps = (x - level.alpha * x0) / level.sigma
        return eps.repeat(1, self.channels, 1, 1)


def mean_given(x: Tensor, level: Level, m: float) -> Tensor:
    """E[x₀ | x_t] of N(m, S²)."""
    spread = (level.alpha * S) ** 2 + level.sigma**2
    return m + level.alpha * S**2 / spread * (x - level.alpha * m)


def denoiser(
    scheduler: DDPMScheduler, count: int, scale: float = 1.0, channels: int = 1
) -> Denoiser:
    nothing = Script(((1, Conditioning()),))
    guidance = ClassifierGuidance(Guidance(), Classes(scheduler), [1] * count, scale)
    told = [Prompted((nothing,), nothing)] * count
    network = Mixture(scheduler, channels)
    return Denoiser(network, scheduler, told, guidance)


def scheduler(**settings: Any) -> DDPMScheduler:
    return DDPMScheduler(SchedulerConfig(clip_sample=False, **settings))


@pytest.mark.parametrize("t", [0, 10, 300, 700, 900])
def test_the_guided_guess_is_that_of_the_class(t: int) -> None:
    """Algorithm 2 is exact: x̂₀ of both classes becomes E[x₀ | x_t, y]."""
    model = scheduler()
    level = model.level(t)
    x = torch.linspace(-2, 2, 64).view(64, 1, 1, 1)
    want = mean_given(x, level, M)
    free = denoiser(model, 64, 0.0)(x, level).guided(level)
    guided = denoiser(model, 64)(x, level).guided(level)
    tolerance = 2e-6 / level.alpha  # x₀ = (x − σ ε)/α
    assert difference(guided, want) <= tolerance
    twice = denoiser(model, 64, 2.0)(x, level).guided(level)
    assert difference(twice - free, 2 * (want - free)) <= tolerance
    if t > 50:
        assert difference(free, want) > 0.01


@pytest.mark.parametrize(
    ("sampler", "n", "settings", "channels"),
    [
        ("ddpm", 250, {}, 1),
        ("ddpm", 250, {"variance_type": "fixed_large"}, 1),
        ("ddpm", 250, {"variance_type": "learned_range"}, 2),
        ("ddim", 250, {}, 1),
        ("dpmpp_2m", 30, {"beta_schedule": "squaredcos_cap_v2"}, 1),
    ],
)
def test_the_class_is_what_is_drawn(
    sampler: str, n: int, settings: dict[str, Any], channels: int
) -> None:
    """Mean and variance of N(M, S²), where both classes together have the mean 0."""
    model = scheduler(**settings)
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn((COUNT, 1, 1, 1), generator=generator)

    def draw(scale: float) -> Tensor:
        steps = plan(model, sampler, n)
        ask = denoiser(model, COUNT, scale, channels)
        with torch.no_grad():
            *_, (x, _, _) = sample(bind(model, sampler, steps=steps), ask, noise(), steps, noise)
        return x

    x = draw(1.0)
    assert x.mean().item() == pytest.approx(M, abs=0.02)
    assert x.std().item() == pytest.approx(S, rel=0.05)
    if sampler == "ddim":
        free = draw(0.0)
        assert free.mean().abs() < 0.02
        assert free.std().item() == pytest.approx(math.hypot(M, S), rel=0.03)


def test_ddpm_is_told_the_gradient_apart() -> None:
    model = scheduler()
    level, x = model.level(400), torch.linspace(-1, 1, 8).view(8, 1, 1, 1)
    told = denoiser(model, 8)(x, level)
    assert torch.equal(told.x0, denoiser(model, 8, 0.0)(x, level).x0)
    spread = (level.alpha * S) ** 2 + level.sigma**2
    pushed = level.alpha * M / spread * (1 - torch.tanh(level.alpha * M * x / spread))
    assert difference(told.gradient, pushed) <= 1e-5  # d/dx log sigmoid(2 α M x / spread)


def test_who_has_no_class_is_not_pushed() -> None:
    model = scheduler()
    guidance = ClassifierGuidance(Guidance(), Classes(model), [1, None, 0], 3.0)
    gradient = guidance.gradient(torch.full((3, 1, 1, 1), 0.1), model.level(400)).flatten()
    assert gradient[0] > 0.1
    assert gradient[1] == 0
    assert gradient[2] < -0.1
    nobody = ClassifierGuidance(Guidance(), Classes(model), [None], 3.0)
    assert nobody.gradient(torch.zeros(1, 1, 1, 1), None) is None


# In a pipeline, with a real classifier

JUDGE = ClassifierConfig(
    in_channels=1,
    sample_size=8,
    num_classes=10,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    attention_head_dim=8,
    norm_num_groups=4,
    attn_norm_num_groups=4,
)


def judged(embeddings: int | None, **changes: Any) -> Pipeline:
    return pipeline(embeddings, classifier=randomize(Classifier(JUDGE), 7), **changes)


def pt(pipe: Pipeline, prompt: Any = "seven", **arguments: Any) -> Tensor:
    return pipe(
        prompt, **{"output_type": "pt", "num_inference_steps": 5, "seed": 3} | arguments
    ).images


def test_a_classifier_alone_knows_the_classes() -> None:
    """ADM-G of an unconditional model: the U-Net is told nothing."""
    pipe = judged(None, labels=None)
    assert (pipe.defaults.guidance_scale, pipe.defaults.classifier_scale) == (1.0, 1.0)
    assert difference(pt(pipe, "7", classifier_scale=0.0), pt(pipe, "")) == 0
    gaps = [
        difference(pt(pipe, "7", classifier_scale=s), pt(pipe, "", sampler="ddpm")) for s in (1, 50)
    ]
    assert 1e-5 < gaps[0] < gaps[1]
    assert difference(pt(pipe, "7"), pt(pipe, "7", classifier_scale=1.0)) == 0
    assert difference(pt(pipe, "7", classifier_scale=50), pt(pipe, "2", classifier_scale=50)) > 1e-3
    with pytest.raises(ArgumentError, match="guidance_scale"):
        pipe.stream("7", guidance_scale=3.0)


def by_hand(pipe: Pipeline, label: int, scale: float, n: int) -> Tensor:
    """Algorithm 1 on diffusers' scheduler: its step, and Σ times the classifier's gradient."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(variance_type="fixed_large")
    theirs.set_timesteps(n)
    noise = torch.Generator().manual_seed(3)
    x = torch.randn((1, 1, 8, 8), generator=noise)
    told = {} if pipe.classes.no_class is None else {"class_labels": torch.tensor([label])}
    for t in theirs.timesteps:
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            logits = pipe.classifier(leaf, t[None])
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor([label]))
            (down,) = torch.autograd.grad(loss, leaf)
        step = theirs.step(pipe.unet(x, t[None], **told), t, x, generator=noise).prev_sample
        x = step - scale * theirs._get_variance(t) * down * (t > 0)
    return x.clamp(-1, 1) / 2 + 0.5


@pytest.mark.parity
@pytest.mark.parametrize("embeddings", [None, 11])
def test_algorithm_1(embeddings: int | None) -> None:
    pipe = judged(embeddings)
    pipe.scheduler = DDPMScheduler(SchedulerConfig(variance_type="fixed_large"))
    for scale in (0.0, 20.0):
        got = pt(pipe, classifier_scale=scale, guidance_scale=1.0)
        assert difference(got, by_hand(pipe, 7, scale, 5)) <= 1e-4
    assert difference(got, by_hand(pipe, 7, 0.0, 5)) > 1e-2


def test_both_guidances_and_tiles_and_batches() -> None:
    pipe = judged(11)
    alone = pt(pipe, classifier_scale=20, sampler="ddim", seed=4)
    batch = pt(pipe, ["", "seven", "two"], sampler="ddim")
    assert difference(batch[1:2], pt(pipe, sampler="ddim", seed=4)) <= 5e-5
    assert difference(batch[:1], pt(pipe, "", sampler="ddim")) <= 5e-5
    assert difference(alone, batch[1:2]) > 1e-3
    assert difference(pt(pipe, classifier_scale=20, tiling=True, sampler="ddim", seed=4), alone) > 0
    assert pipe.classifier.conv_in.padding_mode == "zeros"
    with torch.inference_mode():
        again = pt(pipe, classifier_scale=20, sampler="ddim", seed=4)
    assert difference(again, alone) == 0


def test_saved_and_loaded(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipe = judged(11)
    pipe.save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path)
    assert torch.equal(pt(again, classifier_scale=20), pt(pipe, classifier_scale=20))
    assert again.defaults == pipe.defaults
    diffusers.DDPMPipeline.from_pretrained(tmp_path)  # which leaves the classifier out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p("", classifier_scale=1.0), "classifier_scale is 1.0, but a prompt is empty"),
        (
            lambda p: p("7", classifier_scale=math.nan),
            "classifier_scale is nan; it must be a number",
        ),
        (lambda p: p("7", height=16), "the size is 8x16, but the classifier knows 8x8 only"),
    ],
)
def test_what_cannot_be(call: Callable[[Pipeline], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call(judged(11))


def test_other_sizes_without() -> None:
    assert (
        judged(11)("7", height=16, classifier_scale=0, num_inference_steps=1).images[0].height == 16
    )
    assert judged(11)("", height=16, num_inference_steps=1).images[0].height == 16


def test_classifiers_that_do_not_fit() -> None:
    with pytest.raises(CheckpointError, match="the classifier knows 10 classes, the model 2"):
        judged(None, labels={"0": "a", "1": "b"})
    colour = Classifier(ClassifierConfig.from_dict(JUDGE.to_dict() | {"in_channels": 3}))
    with pytest.raises(
        CheckpointError, match="the classifier has 3 input channels for pictures of"
    ):
        pipeline(11, classifier=colour)
