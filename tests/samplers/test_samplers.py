"""Samplers: the same pictures as diffusers, the right noise level at every call, order of accuracy.

Everything runs on a small nonlinear stand-in for the network, so it takes milliseconds.
"""

import copy
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.config import SchedulerConfig
from ldm.errors import ArgumentError, CheckpointError
from ldm.samplers import (
    SAMPLERS,
    SCHEDULES,
    Denoised,
    bind,
    choose,
    find_sampler,
    find_schedule,
    first_noise_scale,
    from_config,
    plan,
    sample,
    start_index,
)
from ldm.scheduler import DDPMScheduler, Level

diffusers = pytest.importorskip("diffusers")
# Of its numpy.array(tensor), on every call.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SHAPE = (2, 4, 5, 7)
SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
STEPS = (1, 2, 3, 7, 20, 50)  # 7: from the middle is from an odd step
# case → (sampler, settings of scheduler_config.json, η)
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "ddpm": ("ddpm", {}, 0.0),
    "ddpm large clip": ("ddpm", {"variance_type": "fixed_large", "clip_sample": True}, 0.0),
    "ddim": ("ddim", {}, 0.0),
    "ddim eta 0.5": ("ddim", {"set_alpha_to_one": True}, 0.5),
    "ddim eta 1 clip": ("ddim", {"clip_sample": True, "clip_sample_range": 2.0}, 1.0),
    "dpmpp_2m": ("dpmpp_2m", {}, 0.0),
    "dpmpp_2m karras": ("dpmpp_2m", {"use_karras_sigmas": True}, 0.0),
    "dpmpp_2m beta": ("dpmpp_2m", {"use_beta_sigmas": True}, 0.0),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}, 0.0),
    "dpmpp_2s": ("dpmpp_2s", {}, 0.0),
    "dpmpp_sde": ("dpmpp_sde", {}, 0.0),
    "dpmpp_sde karras": ("dpmpp_sde", {"use_karras_sigmas": True}, 0.0),
    "euler": ("euler", {}, 0.0),
    "euler karras": ("euler", {"use_karras_sigmas": True}, 0.0),
    "euler exponential": ("euler", {"use_exponential_sigmas": True}, 0.0),
    "euler_a": ("euler_a", {}, 0.0),
    "heun": ("heun", {}, 0.0),
    "heun beta": ("heun", {"use_beta_sigmas": True}, 0.0),
    "dpm2": ("dpm2", {}, 0.0),
    "dpm2 karras": ("dpm2", {"use_karras_sigmas": True}, 0.0),
    "dpm2_a": ("dpm2_a", {}, 0.0),
    "lms": ("lms", {}, 0.0),
    "lms exponential": ("lms", {"use_exponential_sigmas": True}, 0.0),
    "unipc": ("unipc", {}, 0.0),
    "unipc 1": ("unipc", {"solver_order": 1}, 0.0),
    "unipc 3": ("unipc", {"solver_order": 3}, 0.0),
    "unipc karras": ("unipc", {"use_karras_sigmas": True}, 0.0),
    "deis": ("deis", {}, 0.0),
    "lcm": ("lcm", {}, 0.0),
    "tcd": ("tcd", {}, 0.0),
    "tcd eta 0.3": ("tcd", {}, 0.3),
    "tcd eta 1": ("tcd", {"original_inference_steps": 100}, 1.0),
    "pndm": ("pndm", {}, 0.0),
    "pndm to t = 0": ("pndm", {"steps_offset": 0, "set_alpha_to_one": True}, 0.0),
}
# Settings with which diffusers' class is this sampler.
OURS_IN_THEIRS: dict[str, dict[str, Any]] = {
    "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"},
    "dpmpp_3m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
}
DRAWS = ("ddpm", "ddim", "euler_a", "dpm2_a", "dpmpp_2m_sde", "lcm", "tcd")  # with a generator
NO_X0 = ("dpm2", "dpm2_a", "dpmpp_sde")  # diffusers refuses "sample"; test_samplers_k_diffusion
CALLS_AT = "timesteps that the network was told"


def network(x: Tensor, t: float) -> Tensor:
    """A smooth nonlinear function of all of x and t, of about unit size."""
    return 0.8 * torch.tanh(x + 0.4 * x.roll(1, -1)) + 0.3 * torch.cos(2 * x + t / 150)


def scheduler_for(name: str, settings: dict[str, Any]) -> DDPMScheduler:
    values = {**SD, **OURS_IN_THEIRS.get(name, {}), **settings}
    values["_class_name"] = SAMPLERS[name].class_name or "EulerDiscreteScheduler"
    return DDPMScheduler(SchedulerConfig.from_dict(values))


MADE: dict[str, Any] = {}  # some take long to make; set_timesteps() makes them as new


def theirs_for(name: str, settings: dict[str, Any]) -> Any:
    values = {**SD, **OURS_IN_THEIRS.get(name, {}), **settings}
    if name == "lms" or settings.get("use_beta_sigmas"):
        pytest.importorskip("scipy", reason="diffusers needs it")
    if name == "dpmpp_sde":
        pytest.importorskip("torchsde", reason="diffusers needs it")
    key = f"{name} {sorted(values.items())}"
    if key not in MADE:
        MADE[key] = getattr(diffusers, SAMPLERS[name].class_name).from_config(values)
    return MADE[key]


def start_and_noise(seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, *SHAPE, generator=generator)
    return x0, noise, generator


def knowing(x0_of: Callable[[Tensor, Level], Tensor]) -> Callable[[Tensor, Level, int], Denoised]:
    """A denoiser that returns x̂₀ alone."""
    return lambda x, level, step: Denoised(x0_of(x, level))


def last(states: Iterator[tuple[Tensor, int, Tensor]]) -> Tensor:
    """The x that a run ends in."""
    *_, (x, _, _) = states
    return x


def run_ours(
    name: str, settings: dict[str, Any], n: int, start: int, eta: float = 0.0
) -> tuple[Tensor, list[float], Tensor]:
    """(latents, timesteps told to the network, state of the generator)."""
    scheduler, told = scheduler_for(name, settings), []
    x0, noise, generator = start_and_noise(n)

    def denoise(x: Tensor, level: Level) -> Tensor:
        told.append(level.t)
        return scheduler.to_x0(network(x, level.t), x, level)

    steps = plan(scheduler, name, n)
    first = steps[start][0]
    x = first.alpha * x0 + first.sigma * noise
    if start == 0:
        x = noise * first_noise_scale(scheduler, name, steps)

    def draw() -> Tensor:
        return torch.randn(SHAPE, generator=generator)

    x = last(sample(bind(scheduler, name, eta, steps), knowing(denoise), x, steps[start:], draw))
    return x, told, generator.get_state()


class Increments:
    """Stands for the Brownian tree of DPMSolverSDEScheduler: W's increments from a generator.

    Asked twice a step, from σ to the middle and from σ to the end, as that scheduler does.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.half = generator, None

    def __call__(self, start: Tensor, end: Tensor) -> Tensor:
        drawn = torch.randn(SHAPE, generator=self.generator)
        if self.half is None:
            self.half = (end, (start - end) ** 0.5 * drawn)
            return drawn
        (middle, moved), self.half = self.half, None
        return (moved + (middle - end) ** 0.5 * drawn) / (start - end) ** 0.5


def run_theirs(
    name: str, settings: dict[str, Any], n: int, start: int, eta: float = 0.0
) -> tuple[Tensor, list[float], Tensor]:
    """The same through diffusers, as its text-to-image and image-to-image pipelines do it."""
    scheduler, told = theirs_for(name, settings), []
    x0, noise, generator = start_and_noise(n)
    scheduler.set_timesteps(n)
    ts = scheduler.timesteps[start * scheduler.order :]
    if name == "pndm" and start:
        # Its image-to-image is wrong; this is its text-to-image warm-up at a later start.
        ts = scheduler.timesteps[start + 1 :]
        ts = torch.cat([ts[:1], ts[1:2], ts[1:]])
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start * scheduler.order)
    x = noise * scheduler.init_noise_sigma
    if start:
        x = scheduler.add_noise(x0, noise, ts[:1])
    options: dict[str, Any] = {"generator": generator} if name in DRAWS else {}
    if name == "dpmpp_sde":
        scheduler.noise_sampler = Increments(generator)
    if name in ("ddim", "tcd"):
        options["eta"] = eta
    for t in ts:
        told.append(t.item())
        prediction = network(scheduler.scale_model_input(x, t), t.item())
        x = scheduler.step(prediction, t, x, **options).prev_sample
    return x, told, generator.get_state()


def difference(name: str, settings: dict[str, Any], n: int, start: int, eta: float) -> float:
    """Largest difference of the final latents; the calls and the generator must agree exactly."""
    ours, told, state = run_ours(name, settings, n, start, eta)
    theirs, expected, their_state = run_theirs(name, settings, n, start, eta)
    # diffusers takes the σ of DPM2's ancestral step from a float32 difference that may cancel to
    # nothing: which time near 0 it then tells depends on the processor.
    within = 2e-2 if name == "dpm2_a" else 1e-3
    assert told == pytest.approx(expected, abs=within), CALLS_AT
    assert torch.equal(state, their_state), "random numbers drawn"
    return (ours - theirs).abs().max().item()


def limit(name: str, n: int) -> float:
    """1e-4 on values up to 40, where diffusers' float32 does not lose more."""
    if SAMPLERS[name].calls == 2 and n <= 3:  # it divides by σ = 0.03 after one step over all of
        return 1e-2  # the noise; test_samplers_k_diffusion compares in float64
    return 6e-4 if name == "lms" else 2e-4 if name == "dpmpp_sde" else 1e-4


def combinations() -> Iterator[tuple[str, str, str]]:
    """(case, spacing, prediction): all for four cases, for the others each value once."""
    for case, (name, _, _) in CASES.items():
        for i, spacing in enumerate(SPACINGS):
            for j, prediction in enumerate(PREDICTIONS):
                refused = prediction == "sample" and name in (*NO_X0, "pndm", "euler_a")
                if case in ("ddpm", "ddim eta 0.5", "dpmpp_2m karras", "euler", "unipc") or i == j:
                    yield case, spacing, "epsilon" if refused else prediction


@pytest.mark.parity
@pytest.mark.parametrize(("case", "spacing", "prediction"), combinations())
def test_final_latents_are_diffusers(case: str, spacing: str, prediction: str) -> None:
    """From noise and from the middle."""
    name, settings, eta = CASES[case]
    if name == "pndm" and spacing == "linspace":
        pytest.skip("diffusers steps off its own timesteps")
    settings = {**settings, "timestep_spacing": spacing, "prediction_type": prediction}
    for n in STEPS:
        if name == "pndm" and spacing == "trailing" and 1000 % n:
            continue  # its second call is then told another timestep than the first step reaches
        # diffusers' LMS has wrong weights in the middle: see test_samplers_k_diffusion.
        for start in {0, n // 2 if n < 50 and name != "lms" else 0}:
            error = difference(name, settings, n, start, eta)
            assert error <= limit(name, n), f"{n} steps from step {start}: {error:.1e}"


@pytest.mark.parity
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "case",
    [
        case
        for case, (name, _, eta) in CASES.items()
        if name in ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "euler", "euler_a", "unipc", "tcd")
        and eta < 1
    ],
)
def test_zero_terminal_snr(case: str, spacing: str) -> None:
    """Where diffusers can: many have no such setting; DDIM with η = 1 gives NaN."""
    name, settings, eta = CASES[case]
    settings = {**settings, "timestep_spacing": spacing, "prediction_type": "v_prediction"}
    settings["rescale_betas_zero_snr"] = True
    # diffusers' Euler holds x/α in float32: up to 4096 times the noise, whose last bit is 5e-4.
    limit = 1e-3 if "euler" in name else 1e-4
    for n in (1, 3, 20):
        error = difference(name, settings, n, 0, eta)
        assert error <= limit, f"{n} steps: {error:.1e}"


@pytest.mark.parity
@pytest.mark.parametrize("case", ["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m karras"])
def test_cosine_schedule(case: str) -> None:
    name, settings, eta = CASES[case]
    settings = {**settings, "prediction_type": "v_prediction"}
    settings["beta_schedule"] = "squaredcos_cap_v2"
    for n in (2, 20):
        assert difference(name, settings, n, 0, eta) <= 1e-4


@pytest.mark.parity
def test_ddpm_over_all_timesteps() -> None:
    """diffusers rounds β = 1 − ᾱ_t/ᾱ_{t−1} to float32, 9e-4 in the end; not with ᾱ in float64."""
    x, *_ = run_ours("ddpm", {}, 999, 0)
    theirs = copy.deepcopy(theirs_for("ddpm", {}))
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.set_timesteps(999)
    _, y, generator = start_and_noise(999)
    for t in theirs.timesteps:
        y = theirs.step(network(y, t.item()), t, y, generator=generator).prev_sample
    assert y.dtype == torch.float32
    assert (x - y).abs().max() <= 1e-4


@pytest.mark.parity
@pytest.mark.parametrize("spacing", [None, *SPACINGS])
@pytest.mark.parametrize("name", SAMPLERS)
def test_timesteps_are_diffusers_for_many_counts(name: str, spacing: str | None) -> None:
    """Among them counts where T/n ends in .5, which numpy rounds by the last bit (48, 96 …)."""
    row, settings = SAMPLERS[name], {} if spacing is None else {"timestep_spacing": spacing}
    if row.class_name is None:
        pytest.skip("diffusers has no such class")
    scheduler, theirs = scheduler_for(name, settings), theirs_for(name, settings)
    many = (*range(1, 50), 61, 96, 144, 192, 333, 500, 998)
    if name in ("lcm", "tcd") or row.calls == 2:  # these have no more; the others' are euler's
        many = many[:49] if row.calls == 1 else (1, 2, 3, 20, 48, 61)
    for n in many:
        theirs.set_timesteps(n)
        # For 61 and others diffusers' trailing list ends in a surplus −1.
        # Where a step calls the network twice, every second timestep is that of the second call.
        expected = theirs.timesteps.tolist()[:: row.calls][: n + (name == "pndm" and n > 1)]
        if name == "pndm" and n > 1:
            del expected[1]  # its repeated timestep: our first step calls the network twice
        told = [a.t for a, _ in plan(scheduler, name, n)]
        assert told == pytest.approx(expected, abs=1e-4), f"{n} steps"


# A point mass at x0: the exact denoiser always answers x0, so the noise that it sees in x must be
# the noise of the level that it is told, at every call.


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("case", CASES)
def test_noise_level_is_the_one_named(case: str, spacing: str, strength: float) -> None:
    name, settings, eta = CASES[case]
    if name in ("ddim", "pndm") and spacing == "linspace":
        pytest.skip("diffusers' own fault, kept on purpose: see test_linspace_of_ddim_drifts")
    # "fixed_small" is the variance that is right for a point mass (Ho et al. 2020, section 3.2).
    settings = {**settings, "timestep_spacing": spacing, "variance_type": "fixed_small"}
    stds = noise_seen(name, settings, strength, eta)
    steps = int(20 * strength)
    assert len(stds) == {2: 2 * steps - 1}.get(SAMPLERS[name].calls, steps + (name == "pndm"))
    assert max(abs(std - 1) for std in stds) < 0.02  # 20 000 values: 4 standard errors


def test_linspace_of_ddim_drifts() -> None:
    """As in diffusers (issues 12633, 11347): the last call sees twice the noise it is told of."""
    stds = noise_seen("ddim", {"timestep_spacing": "linspace"}, strength=1.0)
    assert 2.1 < stds[-1] < 2.3


def noise_seen(
    name: str, settings: dict[str, Any], strength: float, eta: float = 0.0
) -> list[float]:
    """Standard deviation of (x − α x₀)/σ at every call of the network, 20 steps."""
    scheduler, stds = scheduler_for(name, settings), []
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((1, 4, 70, 70), 0.3)
    rounded = {"use_karras_sigmas", "use_beta_sigmas"} & set(settings)  # t, so as not to say σ

    def draw() -> Tensor:
        return torch.randn(x0.shape, generator=generator)

    def denoise(x: Tensor, level: Level) -> Tensor:
        if not rounded:
            level = scheduler.level(level.t)  # from t alone, which is what the network knows
        stds.append(((x - level.alpha * x0) / level.sigma).std().item())
        return x0

    steps = plan(scheduler, name, 20)
    step = bind(scheduler, name, eta, steps)
    steps = steps[start_index(20, strength) :]
    x = steps[0][0].alpha * x0 + steps[0][0].sigma * draw()
    last(sample(step, knowing(denoise), x, steps, draw))
    return stds


def no_noise() -> Tensor:
    raise AssertionError("a deterministic method drew noise")


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_its_single_pictures(case: str) -> None:
    name, settings, eta = CASES[case]
    scheduler = scheduler_for(name, {**settings, "prediction_type": "v_prediction"})
    steps = plan(scheduler, name, 5)

    def draw(seeds: list[int]) -> Callable[[], Tensor]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return lambda: torch.stack([torch.randn(4, 6, 6, generator=g) for g in generators])

    def run(seeds: list[int]) -> Tensor:
        noise = draw(seeds)

        def denoise(x: Tensor, level: Level) -> Tensor:
            return scheduler.to_x0(network(x, level.t), x, level)

        step = bind(scheduler, name, eta, steps)
        return last(sample(step, knowing(denoise), noise(), steps, noise))

    singles = torch.cat([run([seed]) for seed in (3, 4, 5)])
    assert (run([3, 4, 5]) - singles).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "schedule"),
    [(name, schedule) for name, row in SAMPLERS.items() for schedule in row.schedules],
)
def test_few_steps_at_any_strength(name: str, schedule: str) -> None:
    """Every sampler with every schedule that it can use."""
    scheduler = scheduler_for(name, {})
    x0, noise, _ = start_and_noise(0)
    for n in (1, 2, 3, 4):
        for strength in (0, 0.01, 0.2, 0.5, 0.58, 0.999, 1):
            steps = plan(scheduler, name, n, schedule)
            step = bind(scheduler, name, 0.0, steps)
            steps = steps[start_index(n, strength) :]
            x = steps[0][0].alpha * x0 + steps[0][0].sigma * noise if steps else x0
            seen = list(sample(step, lambda *_: Denoised(x0), x, steps, lambda: noise))
            assert len(seen) == len(steps) == (max(1, min(int(n * strength), n)) if strength else 0)
            assert [index for _, index, _ in seen] == list(range(len(steps)))
            for x, _, predicted in seen:
                assert x.isfinite().all() and x.dtype == torch.float32
                assert (predicted - x0).abs().max() < 1e-5
            if seen:  # DDIM, PNDM and DEIS stop at ᾱ₀ (σ = 0.03)
                assert (seen[-1][0] - x0).abs().max() < 0.15


def test_start_index_is_diffusers_rule() -> None:
    assert start_index(50, 0.58) == 22  # int(28.999…) = 28 steps, as diffusers truncates
    assert start_index(50, 0.8) == 10
    assert start_index(4, 0.2) == 3  # diffusers runs no step here, and crashes
    assert start_index(4, 0) == 4
    assert start_index(4, 1) == 0
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(ArgumentError, match=r"strength is .*; it must be in \[0, 1\]"):
            start_index(4, wrong)


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_run_starts_afresh_and_numbers_its_steps(name: str) -> None:
    """What a method keeps between steps belongs to one run; all calls within a step share a number.

    The first step alone tells whether something was left: the methods are of first order there.
    """
    scheduler = scheduler_for(name, {})
    steps = plan(scheduler, name, 4)
    method = bind(scheduler, name, steps=steps)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def run() -> tuple[list[Tensor], list[int]]:
        numbers = []

        def denoise(x: Tensor, level: Level, step: int) -> Denoised:
            numbers.append(step)
            return Denoised(scheduler.to_x0(network(x, level.t), x, level))

        states = sample(method, denoise, noise, steps, lambda: noise)
        return [x for x, _, _ in states], numbers

    (first, numbers), (second, _) = run(), run()
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    calls = {n: numbers.count(n) for n in numbers}
    twice = range(1, 4) if SAMPLERS[name].calls == 2 else [1] if name == "pndm" else []
    assert calls == {n: 2 if n in twice else 1 for n in range(1, 5)}


def test_after_blends_at_the_level_reached() -> None:
    scheduler = scheduler_for("dpmpp_2m", {})
    steps, levels = plan(scheduler, "dpmpp_2m", 3), []

    def after(x: Tensor, level: Level) -> Tensor:
        levels.append(level)
        return torch.full_like(x, 7.0)

    seen = list(
        sample(
            bind(scheduler, "dpmpp_2m"),
            knowing(lambda x, level: x),
            torch.zeros(SHAPE),
            steps,
            no_noise,
            after,
        )
    )
    assert levels == [b for _, b in steps]
    assert all((x == 7).all() for x, _, _ in seen)


@pytest.mark.parametrize("name", SAMPLERS)
def test_config_decides(name: str) -> None:
    if SAMPLERS[name].class_name is None:
        pytest.skip("diffusers has no such class")
    for key, schedule in (
        ("use_karras_sigmas", "karras"),
        ("use_exponential_sigmas", "exponential"),
        ("use_beta_sigmas", "beta"),
    ):
        scheduler = scheduler_for(name, {key: True})
        expected = schedule if hasattr(theirs_for(name, {}).config, key) else "normal"
        assert from_config(scheduler.config) == (name, expected)
        assert choose(scheduler.config, None) == (name, expected)
        assert choose(scheduler.config, name) == (name, expected)
        assert choose(scheduler.config, None, "normal") == (name, "normal")
        assert plan(scheduler, name, 4) == plan(scheduler, name, 4, expected)
    assert from_config(scheduler_for(name, {}).config) == (name, "normal")


def test_labels_are_those_of_a1111() -> None:
    labels = {name: row.label for name, row in SAMPLERS.items()}
    assert labels == {
        "ddpm": "DDPM",
        "ddim": "DDIM",
        "pndm": "PLMS",
        "euler": "Euler",
        "euler_a": "Euler a",
        "heun": "Heun",
        "dpm2": "DPM2",
        "dpm2_a": "DPM2 a",
        "lms": "LMS",
        "dpmpp_2m": "DPM++ 2M",
        "dpmpp_2m_sde": "DPM++ 2M SDE",
        "dpmpp_3m_sde": "DPM++ 3M SDE",
        "dpmpp_2s": "DPM++ 2S",  # only ours
        "dpmpp_2s_a": "DPM++ 2S a",
        "dpmpp_sde": "DPM++ SDE",
        "unipc": "UniPC",
        "deis": "DEIS",
        "lcm": "LCM",
        "tcd": "TCD",
    }
    assert {name: row.label for name, row in SCHEDULES.items()} == {
        "normal": "Automatic",
        "karras": "Karras",
        "exponential": "Exponential",
        "sgm_uniform": "SGM Uniform",
        "simple": "Simple",
        "ddim_uniform": "DDIM",
        "beta": "Beta",
        "ays": "Align Your Steps",
        "ays_xl": "Align Your Steps",
    }


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_name_of_a_sampler_is_understood(name: str) -> None:
    row = SAMPLERS[name]
    for text in (name, name.upper(), row.label, row.label.lower(), f" {row.label} "):
        assert find_sampler(text) == (name, None)
    for key, schedule in SCHEDULES.items():
        for ending in (f"_{key}", f" {schedule.label}"):
            found = "ays" if key == "ays_xl" and "Align" in ending else key
            assert find_sampler(name + ending) == (name, found)
            assert find_sampler(row.label + ending) == (name, found)
    if row.class_name:
        first = next(key for key, r in SAMPLERS.items() if r.class_name == row.class_name)
        assert find_sampler(row.class_name) == find_sampler(row.class_name.lower()) == (first, None)


def test_other_names() -> None:
    assert find_sampler("plms") == ("pndm", None)
    assert find_sampler("DPM++ 2M Karras") == ("dpmpp_2m", "karras")
    assert find_sampler("DPM++ 2M SDE Exponential") == ("dpmpp_2m_sde", "exponential")
    assert find_sampler("Euler ancestral") == ("euler_a", None)
    for text, schedule in {
        "Karras": "karras",
        "SGM Uniform": "sgm_uniform",
        "sgm-uniform": "sgm_uniform",
        "automatic": "normal",
        "Align Your Steps": "ays",
        "AYS": "ays",
    }.items():
        assert find_schedule(text) == schedule
    config = scheduler_for("ddim", {}).config
    assert choose(config, "DPM++ 2M Karras", "karras") == ("dpmpp_2m", "karras")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "SASolverScheduler"}, "SASolverScheduler.*--sampler"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"},
            "algorithm_type.*'sde-dpmsolver'; only 'dpmsolver[+][+]'.*--sampler",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
            "solver_order of DPMSolverMultistepScheduler is 3; only 2 is supported",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"},
            "solver_type.*'bh1'; only 'bh2'",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler"}
            | {"use_karras_sigmas": True, "use_beta_sigmas": True},
            "karras and beta levels at once",
        ),
        ({"_class_name": "HeunDiscreteScheduler", "clip_sample": True}, "clip_sample"),
        ({"_class_name": "PNDMScheduler"}, "skip_prk_steps.*False; only True.*--sampler"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learnt"}, "variance_type"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding"),
    ],
)
def test_unsupported_configs_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_config(SchedulerConfig.from_dict(values))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: plan(s, "magic", 4), "sampler is 'magic'; expected one of ddpm, ddim"),
        (lambda s: choose(s.config, "heum"), "sampler is 'heum'; did you mean 'heun'"),
        (lambda s: choose(s.config, "dpm++ 2n"), "did you mean 'dpmpp_2s' or 'dpmpp_2m'"),
        (lambda s: choose(s.config, "euler", "caras"), "schedule is 'caras'; did you mean 'karras"),
        (
            lambda s: choose(s.config, "euler", "magic"),
            "schedule is 'magic'; expected one of normal",
        ),
        (lambda s: choose(s.config, "euler_karras", "beta"), "leave one of them out"),
        (lambda s: plan(s, "ddim", 0), "num_inference_steps is 0"),
        (lambda s: plan(s, "dpmpp_2m", -1), "num_inference_steps is -1"),
        (lambda s: plan(s, "euler", 0, "karras"), "num_inference_steps is 0"),
        (lambda s: plan(s, "dpmpp_2m", 0, "karras"), "num_inference_steps is 0"),
        (lambda s: plan(s, "euler_a", 1001, "simple"), "num_inference_steps is 1001"),
        (lambda s: plan(s, "ddim", 1001), "num_inference_steps is 1001"),
        (lambda s: plan(s, "ddim", 1000), "num_inference_steps is 1000"),  # steps_offset 1
        (
            lambda s: plan(s, "pndm", 4, "karras"),
            "'karras' does not suit sampler 'pndm': its weights",
        ),
        (lambda s: bind(s, "ddim", 1.5), r"eta is 1.5; it must be in \[0, 1\]"),
        (lambda s: bind(s, "euler", 0.5), "sampler 'euler' has no eta"),
    ],
)
def test_bad_arguments(call: Callable[[DDPMScheduler], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call(scheduler_for("ddim", {}))


def test_epsilon_at_zero_snr_is_refused_before_the_run() -> None:
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(CheckpointError, match="'epsilon' says nothing at zero SNR"):
        plan(scheduler_for("ddim", settings), "ddim", 4)
    plan(scheduler_for("ddim", {**settings, "timestep_spacing": "leading"}), "ddim", 4)


def test_unknown_spacing_is_refused() -> None:
    with pytest.raises(CheckpointError, match="timestep_spacing is 'log'; expected 'leading'"):
        plan(scheduler_for("ddim", {"timestep_spacing": "log"}), "ddim", 4)


def test_listing_the_samplers_does_not_import_torch() -> None:
    code = "import sys, ldm.samplers; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
