"""Names of samplers and schedules as other programs write them, through one table."""

from __future__ import annotations

import pytest

from ldm.errors import ArgumentError
from ldm.samplers import SAMPLERS, find_sampler, find_schedule

# Each program's own names, from its lists.
A1111 = {
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ SDE": "dpmpp_sde",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "DPM++ 2S a": "dpmpp_2s_a",
    "Euler a": "euler_a",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm2",
    "DPM2 a": "dpm2_a",
    "DDIM": "ddim",
    "PLMS": "pndm",
    "UniPC": "unipc",
    "LCM": "lcm",
    "TCD": "tcd",  # an extension
}
K_DIFFUSION = {
    "sample_euler": "euler",
    "sample_euler_ancestral": "euler_a",
    "sample_dpm_2": "dpm2",
    "sample_dpm_2_ancestral": "dpm2_a",
    "sample_dpmpp_2s_ancestral": "dpmpp_2s_a",
    "sample_dpmpp_sde": "dpmpp_sde",
    "k_euler_a": "euler_a",
    "k_euler_ancestral": "euler_a",
    "k_dpmpp_2m": "dpmpp_2m",
    "k_dpm_2": "dpm2",
    "k_dpm_2_a": "dpm2_a",
    "k_lms": "lms",
    "k_heun": "heun",
}
COMFYUI = {
    "euler_ancestral": "euler_a",
    "dpm_2_ancestral": "dpm2_a",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "ddpm": "ddpm",
    "deis": "deis",
}
INVOKEAI = {"kdpm_2": "dpm2", "kdpm_2_a": "dpm2_a", "dpmpp_2s": "dpmpp_2s", "pndm": "pndm"}
CPP = {"dpm++2m": "dpmpp_2m", "dpm++2s_a": "dpmpp_2s_a", "dpm++2m_sde": "dpmpp_2m_sde"}
SD_NEXT = {
    "LMSD": "lms",
    "KDPM2": "dpm2",
    "KDPM2 a": "dpm2_a",
    "DDIM Parallel": "ddim",
    "DPM SDE": "dpmpp_sde",
    "PNDM": "pndm",
}
DIFFUSERS = {
    "EulerAncestralDiscreteScheduler": "euler_a",
    "EulerAncestralDiscrete": "euler_a",
    "KDPM2AncestralDiscrete": "dpm2_a",
    "DPMSolverMultistep": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "LMSDiscrete": "lms",
    "DDIMParallelScheduler": "ddim",
}
ALL = A1111 | K_DIFFUSION | COMFYUI | INVOKEAI | CPP | SD_NEXT | DIFFUSERS


@pytest.mark.parametrize("name", ALL)
def test_samplers(name: str) -> None:
    for text in (name, name.upper(), f" {name.lower()} "):
        assert find_sampler(text) == (ALL[name], None)
    for ending in ("_karras", " Karras", "_k"):
        assert find_sampler(name + ending) == (ALL[name], "karras")
    assert find_sampler(f"{name} SGM Uniform") == (ALL[name], "sgm_uniform")


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("dpmpp_2m_sde_gpu_karras", ("dpmpp_2m_sde", "karras")),
        ("dpmpp_3m_sde_gpu_exponential", ("dpmpp_3m_sde", "exponential")),
        ("euler_a discrete", ("euler_a", "normal")),
        ("dpm++2m discrete", ("dpmpp_2m", "normal")),
        ("euler_ddim_uniform", ("euler", "ddim_uniform")),
        ("k_dpmpp_2m_k", ("dpmpp_2m", "karras")),
        ("DPM2 a Karras", ("dpm2_a", "karras")),
    ],
)
def test_samplers_with_schedules(name: str, want: tuple[str, str]) -> None:
    assert find_sampler(name) == want


@pytest.mark.parametrize(
    "name",
    [
        *("euler_cfg_pp", "DDIM CFG++", "dpm++2mv2", "ddim_trailing", "DPM fast", "heunpp2"),
        *("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun_gpu", "ipndm", "Restart", "k", "gpu"),
        *("Euler FlowMatch", "FlowMatchEulerDiscreteScheduler", "er_sde", "karras", "", "_k"),
        *("DPM2 a FlowMatch", "sa_solver", "res_multistep", "gradient_estimation", "euler_kk"),
    ],
)
def test_other_methods_are_not_taken_for_ours(name: str) -> None:
    with pytest.raises(ArgumentError, match="sampler is"):
        find_sampler(name)


def test_our_names_mean_themselves() -> None:
    assert all(find_sampler(name) == (name, None) for name in SAMPLERS)


SCHEDULES = {
    "Automatic": "normal",
    "Uniform": "normal",
    "discrete": "normal",
    "native": "normal",
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "exponential",
    "SGM Uniform": "sgm_uniform",
    "sgm_uniform": "sgm_uniform",
    "Simple": "simple",
    "DDIM": "ddim_uniform",
    "ddim_uniform": "ddim_uniform",
    "Beta": "beta",
    "Align Your Steps": "ays",
    "align_your_steps": "ays",
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    assert find_schedule(name) == find_schedule(name.upper()) == SCHEDULES[name]


@pytest.mark.parametrize(
    "name", ["kl_optimal", "Turbo", "linear_quadratic", "gits", "bong_tangent", "lcm", "k", ""]
)
def test_other_schedules_are_not_taken_for_ours(name: str) -> None:
    with pytest.raises(ArgumentError, match="schedule is"):
        find_schedule(name)
