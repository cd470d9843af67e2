"""Two models that share a run: diffusers' ensemble of expert denoisers, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli import generate
from ldm.errors import ArgumentError, CheckpointError
from ldm.images.generation_info import from_text
from ldm.pipeline import Pipeline
from ldm.refiner import Ensemble
from ldm.taesd import AutoencoderTiny
from tests.helpers.families import for_task
from tests.helpers.networks import difference
from tests.helpers.pictures import PROMPT, assert_same, draw, draw_theirs, generator

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]

# Samplers, their classes, and whether diffusers' latents are x/α there, where ours are x.
SAMPLERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "euler": ("EulerDiscreteScheduler", {}, True),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, True),
    "ddim": ("DDIMScheduler", {"clip_sample": False}, False),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}, False),
    "unipc": ("UniPCMultistepScheduler", {}, False),
    "heun": ("HeunDiscreteScheduler", {}, True),
}
N = 10


def scheduled(theirs: Any, sampler: str, task: str) -> Any:
    """diffusers' pipeline with the scheduler of a sampler."""
    name, settings, _ = SAMPLERS[sampler]
    pipe = for_task(theirs, task)
    scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config, **settings)
    return type(pipe)(
        **{**pipe.components, "scheduler": scheduler},
        **{"add_watermarker": False, "force_zeros_for_empty_prompt": False},
        **({"requires_aesthetics_score": pipe.config.get("requires_aesthetics_score", False)}
           if task != "text" else {}),
    )  # fmt: skip


def unit(ours: Pipeline, sampler: str, fraction: float, latents: torch.Tensor) -> torch.Tensor:
    """diffusers' latents at unit scale, at the level that comes after a fraction of the steps."""
    if not SAMPLERS[sampler][2]:
        return latents
    steps, _ = ours.schedule(N, sampler=sampler)
    level = next(a for a, _ in steps if a.t < round(1000 - 1000 * fraction))
    return latents * level.alpha


@pytest.fixture
def pair(models: Any) -> tuple[Pipeline, Any, Pipeline, Any]:
    base, their_base = models("sdxl")
    refiner, their_refiner = models("refiner")
    same = Pipeline(**base.parts | {"force_zeros_for_empty_prompt": False})
    return same, their_base, refiner, their_refiner


@pytest.mark.parity
@pytest.mark.parametrize("fraction", [0.6, 0.75, 0.8])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "heun"])
def test_the_ensemble_is_diffusers(pair: Any, sampler: str, fraction: float) -> None:
    """Handed over latents, and those at the end, within 1e-4."""
    base, their_base, refiner, their_refiner = pair
    theirs = [scheduled(their_base, sampler, "text"), scheduled(their_refiner, sampler, "image")]
    for pipe in theirs:
        pipe.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"num_inference_steps": N, "guidance_scale": 4.0}
    noise = generator(3)
    handed = theirs[0](
        PROMPT, denoising_end=fraction, output_type="latent", generator=noise, height=40, width=64,
        **arguments,
    ).images  # fmt: skip
    want = draw_theirs(
        theirs[1], image=handed, denoising_start=fraction, generator=noise, **arguments
    )

    arguments |= {"sampler": sampler}
    drawn = base(
        PROMPT, seed=3, denoising_end=fraction, output_type="latent", height=40, width=64,
        **arguments,
    ).images  # fmt: skip
    assert difference(drawn, unit(base, sampler, fraction, handed)) <= 1e-4
    if sampler != "euler_a":  # which draws noise: the same seed is not the same sequence
        got = draw(refiner, latents=drawn, denoising_start=fraction, seed=1, **arguments)
        assert_same(got, want)
    both = Ensemble(base, refiner)
    got = draw(both, seed=3, refiner_start=fraction, height=40, width=64, **arguments)
    assert_same(got, want)


@pytest.mark.parity
def test_a_base_that_starts_from_an_image(pair: Any, picture: Image.Image) -> None:
    base, their_base, refiner, their_refiner = pair
    theirs = [scheduled(their_base, "euler", "image"), scheduled(their_refiner, "euler", "image")]
    arguments: dict[str, Any] = {"num_inference_steps": N, "guidance_scale": 4.0}
    handed = theirs[0](
        PROMPT, image=picture, strength=0.7, denoising_end=0.8, output_type="latent",
        generator=generator(3), **arguments,
    ).images  # fmt: skip
    want = draw_theirs(theirs[1], image=handed, denoising_start=0.8, **arguments)
    both = Ensemble(base, refiner)
    got = draw(both, image=picture, strength=0.7, seed=3, refiner_start=0.8, **arguments)
    assert_same(got, want)


@pytest.mark.parity
def test_heun_hands_over_between_whole_steps(pair: Any) -> None:
    """A deliberate difference: diffusers stops in the middle of a step, and its refiner takes the
    result for the step's beginning. Both halves are compared where diffusers can be made to cut
    between steps: by its callback, and with a later start."""
    base, their_base, refiner, their_refiner = pair
    theirs = [scheduled(their_base, "heun", "text"), scheduled(their_refiner, "heun", "image")]
    arguments: dict[str, Any] = {"num_inference_steps": N, "guidance_scale": 4.0}
    latents: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].clone())
        return {}

    theirs[0](PROMPT, generator=generator(3), callback_on_step_end=keep, **arguments)
    handed = latents[2 * 6 - 1]
    want = draw_theirs(theirs[1], image=handed, denoising_start=0.75, **arguments)
    arguments |= {"sampler": "heun"}
    drawn = base(PROMPT, seed=3, denoising_end=0.6, output_type="latent", **arguments).images
    assert difference(drawn, unit(base, "heun", 0.6, handed)) <= 1e-4
    assert_same(draw(refiner, latents=drawn, denoising_start=0.6, **arguments), want)


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "ddim", "heun", "lcm"])
@pytest.mark.parametrize("task", ["text", "image", "mask"])
def test_a_model_that_refines_itself(
    models: Any, picture: Image.Image, mask: Image.Image, sampler: str, task: str
) -> None:
    """Draws the picture that it draws alone, also of texts that change; steps count on."""
    pipe, _ = models("sd")
    arguments: dict[str, Any] = {"seed": 2, "num_inference_steps": 8, "sampler": sampler}
    arguments |= {"output_type": "pt", "prompt": ["[a:b:0.9] car", "[cat::7] two"]}
    if task != "text":
        arguments |= {"image": picture, "strength": 0.8}
    if task == "mask":
        arguments |= {"mask_image": mask}
    *_, want = pipe.stream(**arguments)
    steps = list(Ensemble(pipe, pipe).stream(**arguments, refiner_start=0.7))
    assert difference(steps[-1].output.images, want.output.images) < 1e-6
    assert difference(steps[-1].latents, want.latents) < 1e-5
    assert [one.step for one in steps] == list(range(1, want.steps + 1))
    assert {one.steps for one in steps} == {want.steps}
    assert steps[-1].output.seeds == [2, 3]
    assert all(one.output is None for one in steps[:-1])


def test_the_base_decides_what_is_left_out(models: Any, tmp_path: Path) -> None:
    """Steps, guidance and sampler are the base's, and its VAE decodes."""
    base, _ = models("sd")
    other, _ = models("sd2")
    base = Pipeline(**base.parts | {"defaults": type(base.defaults)(5, 2.0)})
    both = Ensemble(base, other)
    want = both("x", seed=1, num_inference_steps=5, guidance_scale=2.0, sampler="ddim",
                output_type="pt").images  # fmt: skip
    assert torch.equal(both("x", seed=1, output_type="pt").images, want)
    latents = both("x", seed=1, output_type="latent").images
    assert difference(base.decode(latents) / 2 + 0.5, want) < 1e-6


def test_inpainting_models_on_either_side(
    models: Any, picture: Image.Image, mask: Image.Image
) -> None:
    plain, inpainting = models("sd")[0], models("sd_inpaint")[0]
    arguments = {"image": picture, "mask_image": mask, "seed": 1, "num_inference_steps": 5}
    for first, second in ((plain, inpainting), (inpainting, plain)):
        for strength in (0.7, 1.0):
            drawn = Ensemble(first, second)("x", **arguments, strength=strength).images[0]
            kept = np.asarray(mask) == 0
            blurred = np.asarray(picture.resize(drawn.size))
            assert (np.asarray(drawn) != blurred).any()
            assert (np.asarray(drawn)[:4, 50:] == blurred[:4, 50:]).all()
            assert kept.any()


def test_latents_of_another_format(models: Any, tmp_path: Path) -> None:
    sd, xl = models("sd")[0], models("sdxl")[0]
    message = (
        "cannot continue the base's latents: its own have 4 channels at 1/8 of the size, of Stable "
        "Diffusion XL, the base's 4 channels at 1/8 of the size, of Stable Diffusion 1.x or 2.x; "
    )
    with pytest.raises(CheckpointError, match=message):
        Ensemble(sd, xl)
    tiny = AutoencoderTiny(AutoencoderTiny.config_class())
    with pytest.raises(CheckpointError, match="cannot continue the base's latents"):
        Ensemble(Pipeline(**sd.parts | {"vae": tiny}), xl)
    Ensemble(Pipeline(**sd.parts | {"vae": tiny}), sd)
    built_in = Pipeline.from_pretrained(device="cpu")
    with pytest.raises(CheckpointError, match="its own have 8 channels at 1/8"):
        Ensemble(sd, built_in)
    from dataclasses import replace

    from ldm.vae import AutoencoderKL

    other = AutoencoderKL(replace(sd.vae.config, scaling_factor=0.5))
    with pytest.raises(
        CheckpointError, match=r"a scaling_factor of 0\.5, the base's a scaling_fac"
    ):
        Ensemble(sd, Pipeline(**sd.parts | {"vae": other}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"denoising_start": 0.5}, "denoising_start continues a run; give its latents, drawn with"),
        (
            {"denoising_start": 0.5, "latents": torch.zeros(1, 3, 8, 8)},
            r"latents has the shape \(1, 3, 8, 8\); expected \(1, 4, 8, 8\)",
        ),
        ({"denoising_start": 0.5, "latents": torch.zeros(4)}, "latents has 1 dimensions; expected"),
        ({"image": torch.zeros(1, 4, 8, 8), "denoising_start": 0.5}, "give latents as latents="),
        ({"denoising_end": 0.01}, "no step of 4 is left with denoising_end 0.01; change that"),
        (
            {"denoising_end": 0.2, "image": Image.new("RGB", (64, 64)), "strength": 0.3},
            "no step of 4 is left with denoising_end 0.2, strength 0.3; change that",
        ),
        (
            {"denoising_start": 0.9999, "latents": torch.zeros(1, 4, 8, 8)},
            "no step of 4 is left with denoising_start 0.9999; change that",
        ),
    ],
)
def test_refused(models: Any, arguments: dict[str, Any], message: str) -> None:
    pipe, _ = models("sd")
    with pytest.raises(ArgumentError, match=message):
        pipe.stream("x", num_inference_steps=4, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"refiner_start": 0.0}, r"refiner_start is 0.0; it must be in \(0, 1\)"),
        ({"denoising_end": 0.5}, "refiner_start takes the place of denoising_end; leave that out"),
        ({"refiner_start": 0.01}, "no step of 4 is left with denoising_end 0.01"),
        ({"refiner_start": 0.9999}, "no step of 4 is left with denoising_start 0.9999"),
    ],
)
def test_a_pair_refuses(models: Any, arguments: dict[str, Any], message: str) -> None:
    pipe, _ = models("sd")
    with pytest.raises(ArgumentError, match=message):
        Ensemble(pipe, pipe).stream("x", num_inference_steps=4, **arguments)


# The command


@pytest.fixture
def folders(models: Any, tmp_path: Path) -> tuple[list[str], Path]:
    """A base's options and a refiner's folder; the refiner is another model of the family."""
    models("sd")[0].save_pretrained(tmp_path / "base")
    models("sd2")[0].save_pretrained(tmp_path / "second-1.0")
    options = ["-m", str(tmp_path / "base"), "--steps", "4", "--seed", "1"]
    return options, tmp_path / "second-1.0"


def test_the_command_draws_and_draws_again(
    folders: Any, models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, refiner = folders
    out, again = tmp_path / "a.png", tmp_path / "b.png"
    given = ["--refiner", str(refiner), "--refiner-start", "0.6"]
    assert generate.main(["a car", *options, *given, "-o", str(out)]) == 0
    assert "4 steps, from 0.6 on by the refiner" in capsys.readouterr().err
    both = Ensemble(models("sd")[0], models("sd2")[0])
    want = both("a car", seed=1, num_inference_steps=4, refiner_start=0.6, negative_prompt="")
    with Image.open(out) as image:
        texts, drawn = dict(image.text), np.asarray(image)
    assert np.abs(drawn.astype(int) - np.asarray(want.images[0]).astype(int)).max() <= 1
    assert "Refiner: second-1.0, Refiner switch at: 0.6" in texts["parameters"]
    found = from_text(texts["parameters"])
    assert (found.refiner, found.arguments["refiner_start"]) == ("second-1.0", 0.6)

    replay = ["--from", str(out), "-o", str(again)]
    assert generate.main([*replay, *options[:2]]) == 2
    message = "was drawn with the refiner 'second-1.0'; say with --refiner where it is"
    assert message in capsys.readouterr().err
    assert generate.main([*replay, *options[:2], "--refiner", str(refiner)]) == 0
    with Image.open(again) as image:
        assert (np.asarray(image) == drawn).all()
        assert image.text == texts


def test_lines_of_prompts_have_their_own_start(folders: Any, tmp_path: Path) -> None:
    options, refiner = folders
    lines = tmp_path / "lines.jsonl"
    rows = [{"prompt": "a"}, {"prompt": "a", "refiner_start": 0.3, "seed": 1}]
    lines.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    given = ["--prompts", str(lines), "--refiner", str(refiner), "-o", f"{out}/"]
    rows[1]["output"] = str(tmp_path / "second.png")
    lines.write_text("\n".join(map(json.dumps, rows)))
    assert generate.main([*options, *given, "--batch-size", "1", "--force"]) == 0
    pictures = [Image.open(path) for path in (out / "a-1.png", tmp_path / "second.png")]
    found = [picture.text["parameters"] for picture in pictures]
    assert "Refiner switch at: 0.8" in found[0] and "Refiner switch at: 0.3" in found[1]
    assert np.asarray(pictures[0]).tolist() != np.asarray(pictures[1]).tolist()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--refiner-start", "0.5"], 2, "--refiner-start says where a --refiner takes over; give"),
        (["--refiner", "{}", "--refiner-start", "1"], 2, "refiner_start is 1.0; it must be in (0,"),
        (["--refiner", "{}", "--refiner-start", "x"], 2, "argument --refiner-start: invalid float"),
        (["--refiner", "{}", "--refiner-start", "0.001"], 2, "no step of 4 is left"),
        (["--refiner", "{}", "--hires-scale", "2"], 2, "--refiner and --hires-scale do not go tog"),
        (["--refiner", "nowhere.safetensors"], 1, "nowhere.safetensors does not exist"),
        (["--refiner", ""], 2, "--refiner: it is empty"),
    ],
)
def test_the_command_refuses(
    folders: Any, tmp_path: Path, argv: list[str], code: int, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options, refiner = folders
    argv = [text.format(refiner) for text in argv]
    try:
        got = generate.main(["x", *options, *argv, "-o", str(tmp_path / "x.png")])
    except SystemExit as error:
        got = error.code
    assert got == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


A1111 = """a car
Steps: 20, Sampler: Euler, Schedule type: Automatic, CFG scale: 5, Seed: 1, Size: 64x64, \
Model hash: 31e35c80fc, Model: sd_xl_base_1.0, RNG: CPU, {}, Version: v1.9.0"""


@pytest.mark.parametrize(
    ("labels", "refiner", "start"),
    [
        ("Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: 0.7",
         "sd_xl_refiner_1.0", 0.7),
        ("Refiner: sd_xl_refiner_1.0.safetensors [7440042bbd]", "sd_xl_refiner_1.0", None),
        ("Refiner: None, Refiner switch at: 0.8", None, None),
        ("Refiner: x, Refiner switch at: 1.0", None, None),
        ("Refiner switch at: 0.8", None, None),
    ],
)  # fmt: skip
def test_the_refiner_of_a1111(labels: str, refiner: str | None, start: float | None) -> None:
    info = from_text(A1111.format(labels))
    assert info.refiner == refiner
    assert info.arguments.get("refiner_start") == start
    assert info.notes == ()
    with pytest.raises(ValueError, match="its Refiner switch at is 'x'; expected a number"):
        from_text(A1111.format("Refiner: y, Refiner switch at: x"))
