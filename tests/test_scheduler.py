"""The schedule against diffusers' DDPMScheduler, and against its own equations."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.config import SchedulerConfig
from ldm.errors import ArgumentError, CheckpointError
from ldm.samplers import Denoised, bind, plan, sample
from ldm.scheduler import CLEAN, PREDICTION_TYPES, DDPMScheduler, Level, betas

diffusers = pytest.importorskip("diffusers")

SCHEDULES: dict[str, dict[str, Any]] = {
    "ddpm": {},
    "sd": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero-snr": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "rescale_betas_zero_snr": True,
    },
    "cosine zero-snr": {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True},
    "trained": {"trained_betas": [0.1, 0.2, 0.3, 0.4, 0.5], "num_train_timesteps": 5},
    "short": {"num_train_timesteps": 100},
    "sigmoid": {"beta_schedule": "sigmoid", "beta_start": 1e-7, "beta_end": 2e-3},
}


def both(schedule: str, **more: Any) -> tuple[DDPMScheduler, Any]:
    values = {**SCHEDULES[schedule], **more}
    ours = DDPMScheduler(SchedulerConfig.from_dict(values))
    return ours, diffusers.DDPMScheduler(**values)


def batch(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, size, 4, 6, 5, generator=generator)
    return x0, noise


def far(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return (a - b).abs().max().item()


@pytest.mark.parity
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alphas_cumprod_are_diffusers(schedule: str) -> None:
    ours, theirs = both(schedule)
    assert ours.alphas_cumprod.dtype == torch.float32
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.alphas_cumprod[-1] == 0 or "zero" not in schedule


@pytest.mark.parity
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_add_noise_and_targets_are_diffusers(schedule: str) -> None:
    ours, theirs = both(schedule)
    total = len(ours.ratios)
    t = torch.tensor([0, 1, total // 2, total - 2, total - 1])
    x0, noise = batch(5)
    assert torch.equal(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t))
    for kind, target in {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": theirs.get_velocity(x0, noise, t),
    }.items():
        scheduler, _ = both(schedule, prediction_type=kind)
        assert torch.equal(scheduler.target(x0, noise, t), target), kind


def test_noising_keeps_the_dtype() -> None:
    scheduler, _ = both("sd", prediction_type="v_prediction")
    x0, noise = (tensor.bfloat16() for tensor in batch(2))
    t = torch.tensor([3, 900])
    assert scheduler.add_noise(x0, noise, t).dtype == torch.bfloat16
    assert scheduler.target(x0, noise, t).dtype == torch.bfloat16


@pytest.mark.parity
@pytest.mark.parametrize("schedule", ["ddpm", "sd", "cosine", "trained"])
def test_posterior_is_diffusers(schedule: str) -> None:
    """diffusers' step = mean + √variance · noise; we draw the same noise to take it apart."""
    ours, theirs = both(schedule, prediction_type="sample", clip_sample=False)
    total = len(ours.ratios)
    x0, x = batch(1)
    for t in (1, 2, total // 2, total - 1):
        step = theirs.step(x0, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        mean, variance = ours.posterior(x0, x, torch.tensor([t]))
        # diffusers rounds ᾱ_t/ᾱ_{t−1} to float32, which costs β four of its digits near t = 0.
        assert far(mean + variance.sqrt() * drawn, step) < (5e-4 if t <= 2 else 2e-5)
        assert variance.item() == pytest.approx(theirs._get_variance(t).item(), rel=1e-3)
    mean, variance = ours.posterior(x0, x, torch.tensor([0]))
    assert far(mean, x0) < 1e-6 and variance.item() == 0


def test_posterior_is_bayes_rule() -> None:
    """q(x_{t−1} | x_t, x₀) ∝ q(x_t | x_{t−1}) q(x_{t−1} | x₀): a product of two Gaussians."""
    scheduler, _ = both("ddpm")
    t = torch.tensor([1, 40, 500, 999])
    x0, x = batch(4)
    mean, variance = scheduler.posterior(x0, x, t)
    abar = scheduler.alphas_cumprod.double()
    alpha = abar[t] / abar[t - 1]
    precision = alpha / (1 - alpha) + 1 / (1 - abar[t - 1])
    assert far(variance.flatten().double(), 1 / precision) < 1e-7
    column = (-1, 1, 1, 1)
    weighed = (alpha.sqrt() / (1 - alpha)).view(column) * x
    weighed = weighed + (abar[t - 1].sqrt() / (1 - abar[t - 1])).view(column) * x0
    assert far(mean.double(), weighed / precision.view(column)) < 1e-5


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "mean"])
def test_predictions_turn_into_one_another(kind: str) -> None:
    scheduler, _ = both("sd", prediction_type=kind)
    x0, noise = batch(3)
    t = torch.tensor([0, 400, 999])
    x = scheduler.add_noise(x0, noise, t)
    target = scheduler.target(x0, noise, t)
    for i in range(3):
        arguments = x[i], scheduler.level(t[i].item())
        # μ̃ hardly tells x₀ from x_t where there is little of it: ε̂ of float32 costs it digits.
        assert far(scheduler.to_x0(target[i], *arguments), x0[i]) < (
            1e-3 if kind == "mean" else 2e-5
        )
        assert far(scheduler.to_eps(target[i], *arguments), noise[i]) < 1e-4
        assert far(scheduler.from_x0(x0[i], *arguments), target[i]) < 1e-4
    assert scheduler.to_x0(target[0].bfloat16(), x[0], scheduler.level(1)).dtype == torch.float32


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels(schedule: str) -> None:
    scheduler, _ = both(schedule)
    total = len(scheduler.ratios)
    for t in (0, total // 2, total - 1):
        level = scheduler.level(t)
        assert level.alpha**2 == pytest.approx(scheduler.alphas_cumprod[t].item(), abs=1e-7)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
        back = scheduler.level_of(scheduler.ratios[t])
        assert back.t == pytest.approx(t, abs=1e-4)
        assert back.alpha == pytest.approx(level.alpha, abs=2**-11)
    assert scheduler.level(-1) == CLEAN == Level(-1.0, 1.0, 0.0)
    assert CLEAN.lam == math.inf and Level(0, 0.0, 1.0).lam == -math.inf
    assert Level(0, 0.6, 0.8).lam == pytest.approx(math.log(0.75))
    between = scheduler.level(1.25)
    expected = 0.75 * scheduler.ratios[1] + 0.25 * scheduler.ratios[2]
    assert between.sigma / between.alpha == pytest.approx(expected)
    for wrong in (-2, total, -0.5, math.nan):
        with pytest.raises(ArgumentError, match="it must be -1 or in"):
            scheduler.level(wrong)


def test_snr() -> None:
    scheduler, _ = both("sd")
    t = torch.tensor([0, 500, 999])
    expected = [scheduler.ratios[i] ** -2 for i in t.tolist()]
    assert scheduler.snr(t).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("key", ["beta_schedule", "prediction_type"])
def test_unknown_settings_are_refused_by_name(key: str) -> None:
    config = replace(SchedulerConfig(), **{key: "magic"})
    with pytest.raises(CheckpointError, match=f"{key} is 'magic'; expected"):
        DDPMScheduler(config)


@pytest.mark.parity
def test_quadratic_is_scaled_linear() -> None:
    """DDIM's "quad" and latent diffusion's "linear" are both linear in √β; diffusers reads it."""
    ends = {"beta_start": 0.00085, "beta_end": 0.012}
    ours = SchedulerConfig.from_dict({"beta_schedule": "quadratic", **ends})
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    assert (betas(ours) - roots**2).abs().max() < 1e-8
    theirs = diffusers.DDIMScheduler.from_config(ours.to_dict())
    assert torch.equal(betas(ours), theirs.betas)


@pytest.mark.parity
def test_exponential_is_diffusers_exp() -> None:
    for name in ("exp", "exponential"):
        ours = SchedulerConfig.from_dict({"beta_schedule": name})
        theirs = diffusers.HeunDiscreteScheduler.from_config(ours.to_dict())
        assert torch.equal(DDPMScheduler(ours).alphas_cumprod, theirs.alphas_cumprod)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert DDPMScheduler(ours).alphas_cumprod.tolist() == pytest.approx((-12 * t).exp(), rel=1e-4)


@pytest.mark.parametrize("schedule", ["ddpm", "cosine", "zero-snr", "trained"])
def test_the_mean_is_the_posterior_mean_of_ho_et_al(schedule: str) -> None:
    """Eq. 7 in float64 from β alone, which our code does not start from."""
    scheduler, theirs = both(schedule)
    scheduler = scheduler.predicting("mean")
    beta = theirs.betas.double()
    abar = torch.cumprod(1 - beta, 0)
    x0, noise = batch(4)
    t = torch.tensor([0, 1, len(beta) // 2, len(beta) - 1])
    x = scheduler.add_noise(x0, noise, t)
    for i, at in enumerate(t.tolist()):
        before = abar[at - 1] if at else torch.ones(())
        expected = before.sqrt() * beta[at] / (1 - abar[at]) * x0[i].double()
        expected += (1 - beta[at]).sqrt() * (1 - before) / (1 - abar[at]) * x[i].double()
        # float32 ᾱ, as diffusers has it, knows β near t = 0 to three digits.
        assert far(scheduler.target(x0, noise, t)[i].double(), expected) < 1e-3


def test_the_mean_is_known_between_timesteps() -> None:
    scheduler, _ = both("ddpm", prediction_type="mean")
    (x0, x), levels = batch(1), [scheduler.level(t) for t in (0, 0.25, 1, 500.5, 999)]
    for level in levels:
        mean = scheduler.from_x0(x0, x, level)
        assert far(scheduler.to_x0(mean, x, level), x0) < 2e-3
    # Half-way between two timesteps it lies between theirs.
    below, at, above = (scheduler.from_x0(x0, x, scheduler.level(t)) for t in (500, 500.5, 501))
    assert far((below + above) / 2, at) < 1e-6
    assert far(below, above) > 1e-5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        # PNDM averages raw predictions, of which each kind has its own mean; but none has μ̃.
        ("pndm", "mean"),
        *((name, kind) for name in ("ddpm", "ddim", "euler", "heun") for kind in PREDICTION_TYPES),
    ],
)
def test_every_prediction_type_draws_the_same(name: str, kind: str) -> None:
    """A network that says the same of x̂₀ in other words ends in the same picture."""
    scheduler, _ = both("ddpm", clip_sample=False)

    def drawn(scheduler: DDPMScheduler) -> Tensor:
        def denoise(x: Tensor, level: Level, step: int) -> Denoised:
            x0 = torch.tanh(x * (0.3 + 0.2 * level.alpha))
            return Denoised(scheduler.to_x0(scheduler.from_x0(x0, x, level), x, level))

        steps = plan(scheduler, name, 10)
        generator = torch.Generator().manual_seed(0)
        noise = lambda: torch.randn(1, 1, 8, 8, generator=generator)  # noqa: E731
        *_, (x, _, _) = sample(bind(scheduler, name, steps=steps), denoise, noise(), steps, noise)
        return x

    assert far(drawn(scheduler.predicting(kind)), drawn(scheduler)) < 2e-3


def test_variances() -> None:
    """β̃ and β of Ho et al., and what lies between by Nichol & Dhariwal's eq. 15."""
    _, theirs = both("cosine")
    beta, like = theirs.betas.double(), torch.zeros(4, 2, 3, 3)
    abar = torch.cumprod(1 - beta, 0)
    small = (1 - torch.cat([torch.ones(1), abar[:-1]])) / (1 - abar) * beta
    small[0] = small[1]
    t = torch.tensor([0, 1, 400, 999])
    v = torch.tensor([-1.0, -0.4, 0.2, 1.0]).view(4, 1, 1, 1).expand_as(like)
    w = (v[:, 0, 0, 0].double() + 1) / 2
    clipped = beta.clone()
    clipped[0] = small[0]
    for kind, expected in {
        "fixed_small": small[t].log(),
        "fixed_large": clipped[t].log(),
        "learned_range": w * beta[t].log() + (1 - w) * small[t].log(),
    }.items():
        scheduler, _ = both("cosine", variance_type=kind)
        found = scheduler.log_variance(t, like, v if kind == "learned_range" else None)
        assert (found[:, 0, 0, 0] - expected).abs().max() < 5e-3, kind
        assert found.shape[1:] == ((2, 3, 3) if kind == "learned_range" else (1, 1, 1))
    with pytest.raises(ArgumentError, match="needs v"):
        scheduler.log_variance(t, like)
    with pytest.raises(CheckpointError, match="variance_type is 'learned'; expected one of"):
        both("cosine", variance_type="learned")[0].log_variance(t, like)


@pytest.mark.parity
def test_the_learned_variance_is_diffusers() -> None:
    scheduler, theirs = both("sd", variance_type="learned_range")
    v = torch.linspace(-1.2, 1.2, 24).reshape(1, 2, 3, 4)
    for t in (1, 300, 999):
        ours = scheduler.log_variance(torch.tensor([t]), v, v)
        assert far(ours, theirs._get_variance(t, v)) < 1e-3


def test_split() -> None:
    output = torch.arange(24.0).reshape(1, 4, 2, 3)
    learned, _ = both("ddpm", variance_type="learned_range")
    prediction, v = learned.split(output)
    assert torch.equal(prediction, output[:, :2]) and torch.equal(v, output[:, 2:])
    fixed, _ = both("ddpm")
    assert fixed.split(output)[0] is output and fixed.split(output)[1] is None
