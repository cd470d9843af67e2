"""What enlarges between two passes: pictures by Pillow or a model, or latents as in A1111."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm import Pipeline, read_info
from ldm.cli import generate
from ldm.config.upscalers import BUILT_IN
from ldm.errors import ArgumentError
from ldm.hires import hires_fix
from ldm.images import load_image, read_parameters
from ldm.images.generation_info import from_text
from ldm.upscaling import load_upscaler
from ldm.upscaling.latents import upscale_latents
from tests.helpers.networks import difference
from tests.helpers.pictures import generator
from tests.helpers.upscalers import write_upscaler

SIZE = {"height": 24, "width": 40}
ARGUMENTS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, **SIZE}
LARGE = {"height": 40, "width": 64}
# modules/shared.py of A1111's web UI
LATENT_UPSCALE_MODES = {
    "Latent": {"mode": "bilinear", "antialias": False},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (bicubic)": {"mode": "bicubic", "antialias": False},
    "Latent (bicubic antialiased)": {"mode": "bicubic", "antialias": True},
    "Latent (nearest)": {"mode": "nearest", "antialias": False},
    "Latent (nearest-exact)": {"mode": "nearest-exact", "antialias": False},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_upscaler(tmp_path_factory.mktemp("models") / "ESRGAN" / "4x-Tiny.pth", scale=4)


@pytest.mark.parity
@pytest.mark.parametrize("label", LATENT_UPSCALE_MODES)
def test_latent_modes_are_those_of_a1111(label: str) -> None:
    x = torch.randn(2, 4, 6, 10, generator=generator(0))
    for size in ((9, 15), (12, 20), (6, 10)):
        want = torch.nn.functional.interpolate(x, size=size, **LATENT_UPSCALE_MODES[label])
        (mode,) = (one for one in BUILT_IN.values() if one.label == label)
        assert torch.equal(upscale_latents(x, mode, size), want)


@pytest.mark.parity
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("label", ["Latent", "Latent (bicubic antialiased)"])
def test_two_passes_over_latents_draw_diffusers_picture(
    models: Any, label: str, strength: float
) -> None:
    """diffusers' own two pipelines, which hand latents over, with A1111's interpolation."""
    import diffusers

    ours, theirs = models("sd")
    scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    parts = theirs.components | {"scheduler": scheduler}
    first = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    second = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    small = first("a car", output_type="latent", generator=generator(7), **ARGUMENTS).images
    mode = LATENT_UPSCALE_MODES[label]
    large = torch.nn.functional.interpolate(small / ours.vae.config.scaling_factor, (5, 8), **mode)
    large = large * ours.vae.config.scaling_factor
    arguments = ARGUMENTS | {"height": None, "width": None}
    del arguments["height"], arguments["width"]
    want = second(
        "a car", image=large, strength=strength, output_type="pt", generator=generator(7),
        **arguments,
    ).images  # fmt: skip
    *_, last = hires_fix(
        ours, "a car", seed=7, sampler="ddim", hires_scale=1.6, hires_strength=strength,
        hires_upscaler=label, output_type="pt", **ARGUMENTS,
    )  # fmt: skip
    assert last.output.images.shape[2:] == (40, 64)
    assert difference(last.output.images, want) < 1e-4


def test_no_picture_between_latents(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = models("sd")
    calls = []
    for name in ("encode", "decode"):
        own = getattr(ours.vae, name)
        monkeypatch.setattr(
            ours.vae, name, lambda *a, own=own, name=name: (calls.append(name), own(*a))[1]
        )
    *_, last = hires_fix(ours, "a", hires_upscaler="latent", seed=1, **ARGUMENTS)
    assert calls == ["decode"]
    assert last.output.images[0].size == (80, 48)
    *_, last = hires_fix(
        ours, "a", hires_upscaler="latent", seed=1, hires_strength=0.0, **ARGUMENTS
    )
    assert last.output.images[0].size == (80, 48)
    *_, latents = hires_fix(
        ours, "a", hires_upscaler="latent", seed=1, hires_strength=0.0, output_type="latent",
        **ARGUMENTS,
    )  # fmt: skip
    first = ours("a", seed=1, output_type="latent", **ARGUMENTS).images
    want = torch.nn.functional.interpolate(first, (6, 10), mode="bilinear")
    assert torch.equal(latents.output.images, want)


def test_a_batch_over_latents_draws_each_picture(models: Any) -> None:
    ours, _ = models("sd")
    settings = {"hires_upscaler": "Latent (nearest)", "hires_scale": 1.5, "output_type": "pt"}
    *_, both = hires_fix(ours, ["a", "b"], seed=3, **settings, **ARGUMENTS)
    *_, one = hires_fix(ours, "b", seed=4, **settings, **ARGUMENTS)
    assert difference(both.output.images[1:], one.output.images) < 1e-4


@pytest.mark.parametrize("name", ["Lanczos", "nearest", "bicubic", "model"])
def test_the_second_pass_draws_over_what_the_upscaler_made(
    models: Any, model: Path, name: str
) -> None:
    ours, _ = models("sd")
    given = model if name == "model" else name
    settings = {"hires_scale": 1.5, "hires_strength": 0.5, "seed": 7}
    *_, last = hires_fix(ours, "a car", hires_upscaler=given, **settings, **ARGUMENTS)
    (small,) = ours("a car", seed=7, **ARGUMENTS).images
    large = load_upscaler(given, device="cpu")(small, 64, 40)
    want = ours("a car", image=large, strength=0.5, seed=7, **(ARGUMENTS | LARGE)).images[0]
    assert (np.asarray(last.output.images[0]) == np.asarray(want)).all()
    *_, plain = hires_fix(ours, "a car", **settings, **ARGUMENTS)
    same = (np.asarray(last.output.images[0]) == np.asarray(plain.output.images[0])).all()
    assert same == (name == "Lanczos")


def test_what_cannot_enlarge_is_told_at_once(models: Any, tmp_path: Path) -> None:
    ours, _ = models("sd")
    with pytest.raises(ArgumentError, match="'4x' is no upscaler and no file"):
        hires_fix(ours, "a", hires_upscaler="4x", **ARGUMENTS)


# What files say


def settings(name: str) -> str:
    return read_parameters(name).splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "label", "recorded"),
    [
        ("4x-tiny", "4x-Tiny", "4x-Tiny"),
        ("PATH", "4x-Tiny", "4x-Tiny"),
        ("Latent (bicubic)", "Latent (bicubic)", "latent_bicubic"),
        ("Nearest", "Nearest", "nearest"),
    ],
)
def test_the_command_and_again(
    folder: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    label: str,
    recorded: str,
) -> None:
    """The picture is that of Python, names its upscaler, and is drawn again from its file."""
    monkeypatch.chdir(tmp_path)
    given = str(model) if given == "PATH" else given
    plain = ["--model", str(folder), "--model-dir", str(model.parents[1])]
    command = ["a", *plain, "--steps", "2", "-W", "40", "-H", "24", "--hires-scale", "1.5"]
    argv = [*command, "--hires-upscaler", given, "--seed", "3", "-o", "a.png"]
    assert generate.main(argv) == 0
    assert "Size: 40x24, " in settings("a.png")
    told = f"Hires upscale: 1.5, Hires upscaler: {label}, Denoising strength: 0.5"
    assert told in settings("a.png")
    assert read_info("a.png").arguments["hires_upscaler"] == recorded
    assert generate.main(["--from", "a.png", *plain, "-o", "b.png"]) == 0
    assert (np.asarray(load_image("a.png")) == np.asarray(load_image("b.png"))).all()
    info = from_text(read_parameters("a.png"))
    assert info.arguments["hires_upscaler"] == recorded
    assert (info.arguments["hires_scale"], info.arguments["hires_strength"]) == (1.5, 0.5)
    assert (info.arguments["width"], info.arguments["height"]) == (40, 24)
    assert info.notes == ()
    python = Pipeline.from_pretrained(folder, device="cpu").optimize()
    *_, last = hires_fix(
        python, "a", num_inference_steps=2, seed=3, hires_scale=1.5, **SIZE,
        hires_upscaler=model if "4x" in given else given,
    )  # fmt: skip
    assert (np.asarray(last.output.images[0]) == np.asarray(load_image("a.png"))).all()
    assert last.output.images[0].info["parameters"] == read_parameters("a.png")


def test_the_size_of_the_first_pass_that_nobody_gave(models: Any) -> None:
    ours, _ = models("sd")
    *_, last = hires_fix(ours, "a", num_inference_steps=1, hires_scale=1.3, seed=1)
    picture = last.output.images[0]
    assert picture.size == (80, 80)  # 64 · 1.3 = 83.2
    assert "Size: 64x64, " in picture.info["parameters"]


A1111 = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768, "


@pytest.mark.parametrize(
    ("text", "arguments", "notes"),
    [
        (
            "Denoising strength: 0.4, Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+",
            {"hires_scale": 2, "hires_strength": 0.4, "hires_upscaler": "R-ESRGAN 4x+"},
            (),
        ),
        (
            "Denoising strength: 0.7, Hires upscale: 1.5, Hires steps: 20, Hires upscaler: Latent",
            {"hires_scale": 1.5, "hires_strength": 0.7, "hires_upscaler": "latent"},
            (),
        ),
        (
            "Denoising strength: 0.7, Hires upscale: 2, Hires steps: 10, Hires upscaler: None",
            {"hires_scale": 2, "hires_strength": 0.7, "hires_upscaler": "lanczos"},
            ("Hires steps 10",),
        ),
        (
            "Denoising strength: 0.7, Hires resize: 1024x1536, Hires upscaler: Latent",
            {},
            ("Denoising strength", "Hires resize 1024x1536", "Hires upscaler Latent"),
        ),
    ],
)
def test_two_passes_of_a1111(text: str, arguments: Any, notes: tuple[str, ...]) -> None:
    info = from_text(f"{A1111}{text}, RNG: CPU, Version: v1.10.1")
    found = {name: value for name, value in info.arguments.items() if name.startswith("hires")}
    assert found == arguments and info.notes == notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hires-upscaler", "latent"], "--hires-upscaler is of the second pass; give --hires-s"),
        (
            ["--hires-scale", "2", "--hires-upscaler", "4x-Tony"],
            "--hires-upscaler: '4x-Tony' is no upscaler and no file; did you mean '4x-Tiny'",
        ),
        (["--hires-scale", "2", "--hires-upscaler", ""], "it is empty; give a value"),
    ],
)
def test_options_that_do_not_work(
    model: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_MODEL_DIR", str(model.parents[1]))
        try:
            code = generate.main(["a", *options])
        except SystemExit as exit:
            code = exit.code
    assert code == 2
    assert message in capsys.readouterr().err
