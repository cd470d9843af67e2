"""Schedules: diffusers' levels where it has them, else the formulas of k-diffusion and ComfyUI."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from ldm.config import SchedulerConfig
from ldm.errors import ArgumentError
from ldm.samplers import SAMPLERS, SCHEDULES, plan
from ldm.samplers.schedules import beta_quantile, incomplete_beta
from ldm.scheduler import CLEAN, DDPMScheduler
from tests.samplers.test_samplers import SPACINGS, scheduler_for, theirs_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KEYS = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}
COUNTS = (1, 2, 3, 10, 33)


def ratios(scheduler: DDPMScheduler, name: str, n: int, schedule: str | None = None) -> list[float]:
    return [a.sigma / a.alpha for a, _ in plan(scheduler, name, n, schedule)]


@pytest.mark.parity
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", KEYS)
@pytest.mark.parametrize("name", [name for name, row in SAMPLERS.items() if row.obeys_schedule])
def test_levels_are_diffusers(name: str, schedule: str, spacing: str) -> None:
    if schedule == "beta":
        pytest.importorskip("scipy")
    if name == "dpmpp_2s" and spacing == "leading":
        pytest.skip("has no spacing")
    settings: dict[str, Any] = {"timestep_spacing": spacing}
    scheduler = scheduler_for(name, settings)
    theirs = theirs_for(name, {**settings, KEYS[schedule]: True})
    for n in COUNTS:
        theirs.set_timesteps(n)
        steps = plan(scheduler, name, n, schedule)
        calls = SAMPLERS[name].calls
        told = [a.t for a, _ in steps]
        expected = theirs.timesteps.tolist()[::calls]
        assert told == pytest.approx(expected, abs=1e-3)
        sigmas = theirs.sigmas.tolist()[:-1]
        sigmas = (sigmas[:1] + sigmas[2::2])[:n] if calls == 2 else sigmas
        assert ratios(scheduler, name, n, schedule) == pytest.approx(sigmas, rel=1e-6)
        ends = [b for _, b in steps]
        assert ends == [*(a for a, _ in steps[1:]), CLEAN]


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler_a", "dpmpp_2s_a"])
def test_others_span_what_the_model_was_trained_on(name: str) -> None:
    """As A1111 does: from the model's largest σ to its smallest."""
    scheduler = scheduler_for(name, {"timestep_spacing": "linspace"})
    high, low = scheduler.ratios[-1], scheduler.ratios[0]
    ramp = np.linspace(0, 1, 20)
    karras = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    assert ratios(scheduler, name, 20, "karras") == pytest.approx(karras.tolist(), rel=1e-7)
    exponential = np.exp(np.linspace(math.log(high), math.log(low), 20))
    assert ratios(scheduler, name, 20, "exponential") == pytest.approx(
        exponential.tolist(), rel=1e-7
    )


def t_to_sigma(scheduler: DDPMScheduler, t: float) -> float:
    """k-diffusion's DiscreteSchedule: linear in log σ."""
    logs = np.log(np.asarray(scheduler.ratios))
    low, high, w = math.floor(t), math.ceil(t), t % 1
    return math.exp((1 - w) * logs[low] + w * logs[high])


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "ddim", "lcm", "pndm", "unipc"])
def test_sgm_uniform_and_simple_are_comfyuis(name: str) -> None:
    scheduler = scheduler_for(name, {})
    for n in COUNTS:
        ts = np.linspace(999, 0, n + 1)[:-1]
        steps = plan(scheduler, name, n, "sgm_uniform")
        assert [a.t for a, _ in steps] == pytest.approx(ts.tolist(), abs=1e-4)
        expected = [t_to_sigma(scheduler, t) for t in ts]
        assert ratios(scheduler, name, n, "sgm_uniform") == pytest.approx(expected, rel=1e-6)
        spread = 1000 / n
        picked = [scheduler.ratios[-(1 + int(i * spread))] for i in range(n)]
        assert ratios(scheduler, name, n, "simple") == pytest.approx(picked, rel=1e-7)
        assert plan(scheduler, name, n, "simple")[-1][1] == CLEAN


@pytest.mark.parity
def test_ddim_uniform_is_diffusers_ddim() -> None:
    """DDIM's own timesteps (spacing "leading" with an offset of one), for any sampler."""
    from diffusers import DDIMScheduler

    scheduler = scheduler_for("euler", {})
    for n in (*COUNTS, 30, 999):
        own = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="leading", steps_offset=1)
        own.set_timesteps(n)
        steps = plan(scheduler, "euler", n, "ddim_uniform")
        assert [a.t for a, _ in steps] == pytest.approx(own.timesteps.tolist(), abs=1e-4)
        assert steps[-1][1] == CLEAN
    with pytest.raises(ArgumentError, match="'ddim_uniform' has at most 999"):
        plan(scheduler, "euler", 1000, "ddim_uniform")


@pytest.mark.parity
@pytest.mark.parametrize("schedule", ["ays", "ays_xl"])
def test_ays_is_the_published_table(schedule: str) -> None:
    """Ten steps as diffusers has them; other counts by the quick start guide's interpolation."""
    from diffusers.schedulers import AysSchedules

    prefix = "StableDiffusionXL" if schedule == "ays_xl" else "StableDiffusion"
    table = AysSchedules[f"{prefix}Sigmas"]
    scheduler = scheduler_for("euler", {})
    assert ratios(scheduler, "euler", 10, schedule) == pytest.approx(table[:-1], rel=1e-9)
    told = [a.t for a, _ in plan(scheduler, "euler", 10, schedule)]
    assert told == pytest.approx(AysSchedules[f"{prefix}Timesteps"], abs=3)  # theirs: by hand
    known = [*table[:-1], 0.029]
    for n in COUNTS:
        xs = np.linspace(0, 1, len(known))
        logs = np.interp(np.linspace(0, 1, n + 1), xs, np.log(known[::-1]))
        expected = np.exp(logs)[::-1][:-1]
        assert ratios(scheduler, "dpmpp_2m", n, schedule) == pytest.approx(
            expected.tolist(), rel=1e-9
        )


def test_ays_is_refused_for_other_noise() -> None:
    for settings in ({"beta_end": 0.02}, {"rescale_betas_zero_snr": True}):
        scheduler = DDPMScheduler(
            SchedulerConfig.from_dict({**scheduler_for("euler", {}).config.to_dict(), **settings})
        )
        with pytest.raises(
            ArgumentError, match=r"'ays' was found for noise of up to 14\.615 times"
        ):
            plan(scheduler, "euler", 10, "ays")


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if "ays" not in name])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "ddim"])
def test_zero_terminal_snr_has_finite_levels(name: str, schedule: str) -> None:
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    scheduler = scheduler_for(name, {**settings, "timestep_spacing": "trailing"})
    steps = plan(scheduler, name, 8, schedule)
    levels = [a for a, _ in steps]
    assert all(a.sigma > b.sigma for a, b in itertools.pairwise(levels))
    assert schedule == "normal" or all(level.alpha > 0 for level in levels)


def test_the_beta_distribution_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    special = pytest.importorskip("scipy.special")
    for a, b in ((0.6, 0.6), (0.5, 2.0), (3.5, 0.7)):
        for x in (0.0, 1e-12, 1e-3, 0.2, 0.5, 0.7, 0.999, 1.0):
            assert incomplete_beta(x, a, b) == pytest.approx(special.betainc(a, b, x), abs=2e-15)
    for p in np.linspace(0, 1, 101):
        assert beta_quantile(p) == pytest.approx(stats.beta.ppf(p, 0.6, 0.6), abs=1e-14)


def test_the_beta_distribution_without_scipy() -> None:
    """Arcsine's law: I_x(½, ½) = 2/π asin √x. And F⁻¹(F(x)) = x."""
    for x in np.linspace(0, 1, 41):
        law = 2 / math.pi * math.asin(math.sqrt(x))
        assert incomplete_beta(x, 0.5, 0.5) == pytest.approx(law, abs=1e-14)
        assert beta_quantile(incomplete_beta(x, 0.6, 0.6)) == pytest.approx(x, abs=1e-13)
