"""What a file says that its U-Net predicts: every program's way, and which one is trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm.checkpoints.family import Family, detect
from ldm.checkpoints.prediction import read_beside
from ldm.config import SchedulerConfig
from ldm.errors import CheckpointError
from tests.helpers.original_layouts import layout

SD1, SD2, XL = layout("sd1"), layout("sd2"), layout("sdxl")


def found(shapes: dict, metadata: dict | None = None, path: Path | None = None) -> Family:
    beside = read_beside(path) if path else None
    family = detect(shapes, metadata or {}, "x.safetensors", beside=beside)
    assert family.certain
    return family


STATED = [
    ({"modelspec.prediction_type": "v"}, "v_prediction"),
    ({"modelspec.prediction_type": "v_prediction"}, "v_prediction"),
    ({"modelspec.prediction_type": "V-Prediction"}, "v_prediction"),
    ({"modelspec.prediction_type": "eps"}, "epsilon"),
    ({"modelspec.predict_key": "epsilon"}, "epsilon"),  # ComfyUI
    ({"modelspec.predict_key": "v"}, "v_prediction"),
    ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
    ({"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon"),
    ({"ss_v_parameterization": "True"}, "v_prediction"),  # sd-scripts
    ({"ss_v_parameterization": "False"}, "epsilon"),
    ({"ss_base_model_version": "sd_v2_v"}, "v_prediction"),
    ({"ss_base_model_version": "sd_v2"}, "epsilon"),
    ({"ot_config": '{"force_v_prediction": true}'}, "v_prediction"),  # OneTrainer
    ({"ot_config": '{"force_epsilon_prediction": true}'}, "epsilon"),
    # The model spec before what a trainer was told; a key before both.
    ({"modelspec.prediction_type": "v", "ss_v_parameterization": "False"}, "v_prediction"),
    ({"modelspec.prediction_type": "epsilon", "modelspec.predict_key": "v"}, "epsilon"),
]


@pytest.mark.parametrize(("metadata", "want"), STATED)
@pytest.mark.parametrize("shapes", [SD1, SD2, XL], ids=["sd1", "sd2", "sdxl"])
def test_what_metadata_state(shapes: dict, metadata: dict, want: str) -> None:
    assert found(shapes, metadata).scheduler.prediction_type == want
    marked = found(shapes | {"v_pred": (0,)}, metadata)
    assert marked.scheduler.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    "metadata",
    [
        {"ot_config": "{"},
        {"ot_config": "[]"},
        {"ot_config": "[" * 100_000},
        {"ss_v_parameterization": "None"},
        {"modelspec.prediction_type": " "},
        {"modelspec.architecture": "stable-diffusion-xl-v1-base"},
        {"ss_base_model_version": "sdxl_base_v1-0"},
    ],
)
def test_what_states_nothing(metadata: dict) -> None:
    assert found(SD1, metadata).scheduler.prediction_type == "epsilon"
    assert not detect(SD2, metadata, "file").certain


@pytest.mark.parametrize(
    ("keys", "metadata", "want"),
    [
        ({}, {}, False),
        ({"ztsnr": (0,)}, {}, True),
        ({}, {"ztsnr": "true"}, True),
        ({}, {"ss_zero_terminal_snr": "True"}, True),
        ({}, {"ss_zero_terminal_snr": "False"}, False),
        ({}, {"ot_config": '{"rescale_noise_scheduler_to_zero_terminal_snr": true}'}, True),
    ],
)
def test_zero_terminal_snr(keys: dict, metadata: dict, want: bool) -> None:
    scheduler = found(XL | keys, metadata).scheduler
    assert scheduler.rescale_betas_zero_snr == want
    assert (scheduler.timestep_spacing == "trailing") == want
    if "ot_config" in metadata:
        assert scheduler.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("shapes", "metadata"),
    [
        (XL | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)}, {}),
        (XL | {"edm_vpred.sigma_max": (), "edm_vpred.sigma_min": ()}, {}),
        (XL | {"edm_vpred.sigma_max": (), "v_pred": (0,)}, {}),
        (XL, {"modelspec.architecture": "playground-v2-5"}),
        (XL, {"modelspec.architecture": "x-cosxl", "modelspec.prediction_type": "v"}),
        (SD1 | {"edm_std": (1,)}, {"modelspec.prediction_type": "epsilon"}),
    ],
)
@pytest.mark.parametrize("argument", [None, "epsilon", "v_prediction"])
def test_edm_is_never_taken_for_another(shapes: dict, metadata: dict, argument: str | None) -> None:
    with pytest.raises(CheckpointError, match=r"file \(by .*EDM formulation"):
        detect(shapes, metadata, "file", prediction_type=argument)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_folders_are_named(name: str) -> None:
    values = {"_class_name": name, "sigma_data": 0.5, "prediction_type": "epsilon"}
    with pytest.raises(CheckpointError, match="where is of the EDM formulation"):
        SchedulerConfig.from_dict(values, "where")


CONFIGS = [
    # A1111's copy of CompVis' v2-inference-v.yaml
    ("x.yaml", 'model:\n  params:\n    parameterization: "v"  # not eps\n', "v_prediction", False),
    ("x.yml", "model:\n    parameterization: eps\n    zero_terminal_snr: True\n", "epsilon", True),
    ("x.yaml", "    # parameterization: eps\n    parameterization: v\n", "v_prediction", False),
    (
        "x.yaml",
        "target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n",
        "v_prediction",
        False,
    ),
    ("x.json", '{"#": " #", "prediction_type": "v_prediction"}', "v_prediction", False),
    (
        "scheduler/scheduler_config.json",
        json.dumps({"_class_name": "X", "rescale_betas_zero_snr": True, "prediction_type": "v"}),
        "v_prediction",
        True,
    ),
    ("scheduler_config.json", '{"_class_name": "DDIMScheduler"}', "epsilon", False),
]


@pytest.mark.parametrize(("name", "text", "want", "zero_snr"), CONFIGS)
def test_a_config_beside_the_file(
    tmp_path: Path, name: str, text: str, want: str, zero_snr: bool
) -> None:
    path = tmp_path / "x.safetensors"
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    scheduler = found(SD2, path=path).scheduler
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == (want, zero_snr)
    # What the file itself says is trusted more.
    stated = {"modelspec.predict_key": "epsilon"}
    assert found(SD2, stated, path).scheduler.prediction_type == "epsilon"


def test_the_training_step_is_trusted_less_than_a_config(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("parameterization: v\n")
    beside = read_beside(tmp_path / "x.ckpt")
    family = detect(SD2, {}, "x.ckpt", 875_000, beside=beside)
    assert family.scheduler.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", '{"description": "prediction_type: v"}'),
        ("x.json", "["),
        ("x.json", "[" * 100_000),
        ("y.yaml", "parameterization: v"),  # of another file
        ("x.yaml", ""),
    ],
)
def test_files_beside_that_are_no_config(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert not read_beside(tmp_path / "x.safetensors").statements


def test_a_config_beside_of_edm_and_one_too_large(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "EDMEulerScheduler"}')
    with pytest.raises(CheckpointError, match="EDM formulation"):
        detect(XL, {}, "file", beside=read_beside(path))
    (tmp_path / "x.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(CheckpointError, match=r"x\.yaml has more than 1,000,000 bytes"):
        read_beside(path)
