"""The pipeline: diffusers' pictures from the same folder and seed; clear words for bad input."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ldm
from ldm.errors import ArgumentError, CheckpointError, ImageError
from ldm.loading import devices
from ldm.loading.devices import choose_device, choose_dtype
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from tests.helpers.networks import difference
from tests.helpers.pictures import (
    assert_same,
    draw,
    draw_theirs,
    generator,
    generators,
    pixels,
    quiet,
)

diffusers = pytest.importorskip("diffusers")
# What diffusers has to say about its own schedulers and old configs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]

PROMPT, NEGATIVE = "a red car", "blurry, green"
# ours → diffusers' scheduler and its settings
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
}
# Its image-to-image differs on purpose: see ldm/samplers/pndm.py.
IMAGE_SAMPLERS = [name for name in SAMPLERS if name != "pndm"]


@pytest.fixture(scope="module")
def ours(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return quiet(diffusers.StableDiffusionPipeline.from_pretrained(folder))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Noise over a gradient; neither side is a multiple of 8."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 150, 60)[None, :, None]
    return Image.fromarray((slope + rng.integers(0, 100, (43, 60, 3))).astype(np.uint8))


def with_settings(pipe: Pipeline, **settings: Any) -> Pipeline:
    """The same model with other settings in scheduler_config.json."""
    scheduler = DDPMScheduler(replace(pipe.scheduler.config, **settings))
    return Pipeline(pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, scheduler)


def reference(pipe: Any, sampler: str, image: bool = False, **settings: Any) -> Any:
    """diffusers' text or image pipeline with the scheduler that a sampler of ours stands for."""
    name, own = SAMPLERS[sampler]
    cls = diffusers.StableDiffusionImg2ImgPipeline if image else diffusers.StableDiffusionPipeline
    scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **own, **settings)
    parts = pipe.components | {"scheduler": scheduler}
    return quiet(cls(**parts, requires_safety_checker=False))


# The same pictures as diffusers


@pytest.mark.parity
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_text_to_image(
    ours: Pipeline, theirs: Any, sampler: str, guidance: float, prediction: str
) -> None:
    arguments: dict[str, Any] = {
        "num_inference_steps": 6,
        "guidance_scale": guidance,
        "height": 40,
        "width": 64,
    }
    want = draw_theirs(
        reference(theirs, sampler, prediction_type=prediction), generator=generator(3), **arguments
    )
    pipe = with_settings(ours, prediction_type=prediction)
    assert_same(draw(pipe, sampler=sampler, generator=generator(3), **arguments), want)
    assert_same(draw(pipe, sampler=sampler, seed=3, **arguments), want)


@pytest.mark.parity
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("sampler", IMAGE_SAMPLERS)
def test_image_to_image(
    ours: Pipeline,
    theirs: Any,
    picture: Image.Image,
    sampler: str,
    strength: float,
    prediction: str,
) -> None:
    arguments: dict[str, Any] = {
        "image": picture,
        "strength": strength,
        "num_inference_steps": 7,
        "guidance_scale": 3.0,
        "negative_prompt": NEGATIVE,
    }
    pipe = reference(theirs, sampler, image=True, prediction_type=prediction)
    want = draw_theirs(pipe, generator=generator(4), **arguments)
    pipe = with_settings(ours, prediction_type=prediction)
    got = draw(pipe, sampler=sampler, generator=generator(4), **arguments)
    assert_same(got, want)
    assert got[1][0].size == (56, 40)


@pytest.mark.parity
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "euler"])
def test_other_spacings(ours: Pipeline, theirs: Any, sampler: str, spacing: str) -> None:
    arguments = {"num_inference_steps": 6, "guidance_scale": 3.0, "height": 48, "width": 32}
    pipe = reference(theirs, sampler, timestep_spacing=spacing)
    want = draw_theirs(pipe, generator=generator(5), **arguments)
    pipe = with_settings(ours, timestep_spacing=spacing)
    assert_same(draw(pipe, sampler=sampler, generator=generator(5), **arguments), want)


@pytest.mark.parity
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_batches(ours: Pipeline, theirs: Any, sampler: str, separate: bool) -> None:
    """Several prompts, each with a negative prompt of its own, and several pictures of each."""
    prompts, negatives = [PROMPT, "two dogs"], [NEGATIVE, "cats"]
    arguments: dict[str, Any] = {
        "negative_prompt": negatives,
        "num_images_per_prompt": 2,
        "num_inference_steps": 5,
        "height": 32,
        "width": 40,
    }

    def randomness() -> Any:
        return generators(7, 4) if separate else generator(7)

    want = draw_theirs(reference(theirs, sampler), prompts, generator=randomness(), **arguments)
    got = draw(ours, prompts, sampler=sampler, generator=randomness(), **arguments)
    assert_same(got, want)
    assert min(difference(*got[0][[i, j]]) for i in range(4) for j in range(i)) > 0.1


@pytest.mark.parity
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("prompts", "images", "each"), [(1, 1, 2), (2, 1, 1), (2, 2, 1)])
def test_batches_of_images(
    ours: Pipeline,
    theirs: Any,
    picture: Image.Image,
    prompts: int,
    images: int,
    each: int,
    separate: bool,
) -> None:
    arguments: dict[str, Any] = {
        "image": [picture, picture.rotate(180)][:images],
        "strength": 0.6,
        "num_images_per_prompt": each,
        "num_inference_steps": 5,
    }
    texts = [PROMPT, "two dogs"][:prompts]

    def randomness() -> Any:
        return generators(7, 2) if separate else generator(7)

    pipe = reference(theirs, "ddpm", image=True)
    want = draw_theirs(pipe, texts, generator=randomness(), **arguments)
    assert_same(draw(ours, texts, sampler="ddpm", generator=randomness(), **arguments), want)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("ours_only", "theirs_only", "both"),
    [
        ({"clip_skip": 0}, {}, {}),
        ({"clip_skip": None, "eta": None}, {}, {}),
        ({}, {}, {"eta": 0.6}),
        ({}, {}, {"latents": torch.randn(1, 4, 8, 8, generator=generator(9))}),
        ({}, {}, {"negative_prompt": NEGATIVE}),
        ({}, {}, {"prompt": ""}),
        ({}, {}, {"num_inference_steps": 1}),
    ],
)
def test_arguments(
    ours: Pipeline,
    theirs: Any,
    ours_only: dict[str, Any],
    theirs_only: dict[str, Any],
    both: dict[str, Any],
) -> None:
    """Each does what it does in diffusers; the size is the model's own."""
    both = {"num_inference_steps": 4, **both}
    want = draw_theirs(reference(theirs, "ddim"), generator=generator(1), **theirs_only, **both)
    assert_same(draw(ours, generator=generator(1), **ours_only, **both), want)


@pytest.mark.parity
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_clip_skip(ours: Pipeline, theirs: Any, skip: int) -> None:
    """It counts as in diffusers, and is for both prompts; diffusers forgets the negative one."""
    encoder = theirs.text_encoder
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    states = {}
    for key, text in (("prompt_embeds", PROMPT), ("negative_prompt_embeds", NEGATIVE)):
        ids = torch.tensor(theirs.tokenizer([text], padding="max_length").input_ids)
        with torch.no_grad():
            hidden = encoder(ids, output_hidden_states=True).hidden_states
            states[key] = norm(hidden[-1 - skip])
    arguments: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
    want = draw_theirs(theirs, None, generator=generator(1), **states, **arguments)
    got = draw(ours, negative_prompt=NEGATIVE, clip_skip=skip, seed=1, **arguments)
    assert_same(got, want)


@pytest.mark.parity
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_checkpoint_chooses_the_sampler(
    folder: Path, tmp_path: Path, theirs: Any, sampler: str
) -> None:
    """diffusers saves its scheduler with the model; we then draw with it unasked."""
    pipe = reference(theirs, sampler)
    pipe.scheduler.save_pretrained(shutil.copytree(folder, tmp_path / "m") / "scheduler")
    mine = Pipeline.from_pretrained(tmp_path / "m", device="cpu")
    want = draw_theirs(pipe, num_inference_steps=4, generator=generator(2))
    assert_same(draw(mine, num_inference_steps=4, seed=2), want)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler"])
def test_old_scheduler_configs(folder: Path, tmp_path: Path, name: str) -> None:
    """The first Stable Diffusion folders lack half of the keys; diffusers' pipeline adds some."""
    model = shutil.copytree(folder, tmp_path / "model")
    values = {"_class_name": name, "beta_start": 0.00085, "beta_end": 0.012, "skip_prk_steps": True}
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(values | {"beta_schedule": "scaled_linear"}))
    edit_json(model / "model_index.json", scheduler=["diffusers", name])
    pipe = quiet(diffusers.StableDiffusionPipeline.from_pretrained(model))
    want = draw_theirs(pipe, num_inference_steps=4, generator=generator(2))
    mine = Pipeline.from_pretrained(model, device="cpu")
    assert_same(draw(mine, num_inference_steps=4, seed=2), want)


@pytest.mark.parity
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m_karras"])
def test_diffusers_loads_what_we_save(ours: Pipeline, tmp_path: Path, sampler: str) -> None:
    name, settings = SAMPLERS[sampler]
    mine = with_settings(ours, sampler_class=name, prediction_type="v_prediction", **settings)
    mine.save_pretrained(tmp_path)
    pipe = quiet(diffusers.StableDiffusionPipeline.from_pretrained(tmp_path))
    assert type(pipe.scheduler).__name__ == name
    want = draw_theirs(pipe, num_inference_steps=4, generator=generator(2))
    assert_same(draw(mine, num_inference_steps=4, seed=2), want)
    again = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert again.scheduler.config == mine.scheduler.config
    assert torch.equal(*(draw(p, num_inference_steps=4, seed=2)[0] for p in (again, mine)))


# Noise, seeds and batches


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "pndm", "euler"])
@pytest.mark.parametrize("start_from_image", [False, True])
def test_a_picture_is_the_same_alone(
    ours: Pipeline, picture: Image.Image, sampler: str, start_from_image: bool
) -> None:
    arguments: dict[str, Any] = {"sampler": sampler, "num_inference_steps": 4, "width": 40}
    arguments["guidance_scale"] = 3.0
    if start_from_image:
        arguments |= {"image": picture, "strength": 0.8}
    prompts = [PROMPT, "two dogs"]
    *_, last = ours.stream(prompts, seed=11, num_images_per_prompt=2, **arguments)
    latents, images = last.latents, last.output.images
    assert last.output.seeds == [11, 12, 13, 14]
    for i, seed in enumerate(last.output.seeds):
        alone = draw(ours, prompts[i // 2], seed=seed, **arguments)
        assert difference(latents[i : i + 1], alone[0]) <= 1e-5 * latents.abs().max()
        assert difference(pixels(images[i : i + 1]), pixels(alone[1])) <= 1


def test_seeds_are_picked_and_told(ours: Pipeline) -> None:
    state = torch.get_rng_state()
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    first, second = (ours(PROMPT, num_images_per_prompt=2, **arguments) for _ in range(2))
    assert first.seeds[1] == first.seeds[0] + 1
    assert first.seeds != second.seeds
    again = ours(PROMPT, seed=first.seeds[1], **arguments)
    assert difference(again.images, first.images[1:]) <= 1e-5 * first.images.abs().max()
    one = generator(1)  # which is as good as its seed, once
    assert [ours(PROMPT, generator=one, **arguments).seeds for _ in "ab"] == [[1], [None]]
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's randomness is touched


class PointMass(nn.Module):
    """The exact noise predictor where all pictures are one; notes the noise that it finds."""

    def __init__(self, pipe: Pipeline, x0: Tensor) -> None:
        super().__init__()
        self.config, self.scheduler, self.x0 = pipe.unet.config, pipe.scheduler, x0
        self.scale = nn.Parameter(torch.ones(()))
        self.found: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        level = self.scheduler.level(t[0].item())
        self.found.append((x - level.alpha * self.x0) / level.sigma)
        return self.found[-1] * self.scale


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "dpmpp_2m_karras", "pndm", "euler"])
def test_the_noise_has_the_level_that_the_network_is_told(
    ours: Pipeline, picture: Image.Image, sampler: str, strength: float
) -> None:
    """From the middle too, where diffusers' PNDM is too noisy."""
    arguments: dict[str, Any] = {"image": picture, "seed": 1, "output_type": "latent"}
    unet = PointMass(ours, ours(strength=0, **arguments).images)
    pipe = Pipeline(ours.vae, ours.text_encoder, ours.tokenizer, unet, ours.scheduler)
    pipe(strength=strength, sampler=sampler, num_inference_steps=10, guidance_scale=1, **arguments)
    steps = int(10 * strength)
    assert len(unet.found) == steps + (sampler == "pndm")
    assert 0.8 < unet.found[0].std() < 1.2
    limit = 0.1 if sampler == "dpmpp_2m_karras" else 1e-4  # its timesteps are rounded
    assert max(abs(eps.std() / unet.found[0].std() - 1) for eps in unet.found) <= limit


# What a call yields and returns


@pytest.mark.parametrize(("image", "strength", "steps"), [(False, 0.8, 5), (True, 0.5, 2)])
def test_stream(
    ours: Pipeline, picture: Image.Image, image: bool, strength: float, steps: int
) -> None:
    start = {"image": picture, "strength": strength} if image else {"height": 40, "width": 56}
    seen = list(ours.stream(PROMPT, num_inference_steps=5, seed=1, **start))
    assert [p.step for p in seen] == list(range(1, steps + 1))
    assert {p.steps for p in seen} == {steps}
    assert {p.latents.shape for p in seen} == {p.x0.shape for p in seen} == {(1, 4, 5, 7)}
    assert [p.output is None for p in seen] == [True] * (steps - 1) + [False]
    assert all(difference(a.x0, b.x0) > 1e-3 for a, b in itertools.pairwise(seen))
    assert difference(seen[-1].latents, seen[-1].x0) < 0.5  # hardly any noise is left
    whole = ours(PROMPT, num_inference_steps=5, seed=1, **start)
    assert difference(pixels(seen[-1].output.images), pixels(whole.images)) == 0


def test_streams_do_not_disturb_each_other(ours: Pipeline) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 3, "seed": 1, "sampler": "dpmpp_2m"}
    want = draw(ours, **arguments)[0]
    abandoned = ours.stream("two dogs", num_inference_steps=9)
    next(abandoned)
    mixed = [next(abandoned) and p for p in ours.stream(PROMPT, **arguments)]
    abandoned.close()
    assert torch.is_grad_enabled()
    assert torch.equal(mixed[-1].latents, want)


def test_output_types(ours: Pipeline) -> None:
    arguments = {"seed": 1, "num_inference_steps": 2, "num_images_per_prompt": 2}
    kinds = ("pil", "pt", "latent")
    pil, pt, latent = (ours(PROMPT, output_type=kind, **arguments).images for kind in kinds)
    assert [image.mode for image in pil] == ["RGB", "RGB"]
    assert pt.shape == (2, 3, 64, 64)
    assert pt.dtype == torch.float32
    assert pt.aminmax().min >= 0 and pt.aminmax().max <= 1
    assert difference(pixels(pil), 255 * pt.permute(0, 2, 3, 1)) <= 0.5001
    assert difference(ours.decode(latent) / 2 + 0.5, pt) == 0
    assert difference(latent[:1], latent[1:]) > 0.1


@pytest.mark.parametrize("count", [1, 2])
def test_strength_zero_returns_the_image(ours: Pipeline, picture: Image.Image, count: int) -> None:
    image = picture.crop((0, 0, 56, 40))
    arguments = {"image": image, "strength": 0, "num_images_per_prompt": count}
    seen = list(ours.stream(PROMPT, seed=1, **arguments))
    assert [(p.step, p.steps) for p in seen] == [(0, 0)]
    assert [image.tobytes() for image in seen[0].output.images] == [image.tobytes()] * count
    kept = ours(PROMPT, output_type="pt", **arguments).images
    assert difference(255 * kept.permute(0, 2, 3, 1), pixels([image] * count)) <= 1e-3
    latents = ours(PROMPT, seed=1, output_type="latent", **arguments).images
    assert latents.shape == (count, 4, 5, 7)


@pytest.mark.parametrize(
    ("steps", "strength", "run"),
    [(4, 0.2, 1), (1, 0.8, 1), (1, 0.01, 1), (50, 0.58, 28), (3, 0.999, 2), (3, 1, 3)],
)
def test_strength_counts_steps(
    ours: Pipeline, picture: Image.Image, steps: int, strength: float, run: int
) -> None:
    """As many as in diffusers, but at least one."""
    stream = ours.stream(PROMPT, image=picture, strength=strength, num_inference_steps=steps)
    assert next(stream).steps == run


def test_sizes(ours: Pipeline, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture.save(path)
    sizes = {
        (64, 64): {},
        (64, 24): {"height": 24},
        (56, 40): {"image": path},
        (24, 40): {"image": str(path), "width": 24},
        (16, 72): {"image": [picture], "width": 16, "height": 72},
    }
    for size, arguments in sizes.items():
        assert ours(PROMPT, num_inference_steps=1, **arguments).images[0].size == size


def test_defaults_of_the_model(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    assert next(Pipeline.from_pretrained(model, device="cpu").stream()).steps == 50
    path = model / "generation_config.json"
    path.write_text('{"num_inference_steps": 3, "guidance_scale": 2.0}')
    pipe = Pipeline.from_pretrained(model, device="cpu")
    assert next(pipe.stream()).steps == 3
    plain = draw(pipe, seed=1)[0]
    assert torch.equal(plain, draw(pipe, seed=1, guidance_scale=2.0)[0])
    assert difference(plain, draw(pipe, seed=1, guidance_scale=3.0)[0]) > 1e-2
    pipe.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / path.name).read_text()) == json.loads(path.read_text())
    path.write_text('{"steps": 3}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json.*steps"):
        Pipeline.from_pretrained(model, device="cpu")


@pytest.mark.parity
def test_long_prompts(ours: Pipeline, theirs: Any) -> None:
    """As diffusers draws from the states of two chunks; the short negative prompt is filled up."""
    words = [f"w{i % 10}" for i in range(60)]  # 120 tokens
    chunks = {
        "prompt_embeds": [" ".join(words[:37]) + " w", " ".join(words[37:])[1:]],
        "negative_prompt_embeds": [NEGATIVE, ""],
    }
    states = {}
    for key, texts in chunks.items():
        ids = torch.tensor(theirs.tokenizer(texts, padding="max_length").input_ids)
        with torch.no_grad():
            states[key] = theirs.text_encoder(ids)[0].reshape(1, 154, -1)
    arguments: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
    want = draw_theirs(theirs, None, generator=generator(1), **states, **arguments)
    got = draw(ours, " ".join(words), negative_prompt=NEGATIVE, seed=1, **arguments)
    assert_same(got, want)


# Bad arguments

IMAGE: dict[str, Any] = {"image": Image.new("RGB", (64, 64))}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (IMAGE | {"strength": 1.5}, r"strength is 1\.5; it must be in \[0, 1\]"),
        (IMAGE | {"strength": -0.1}, r"strength is -0\.1"),
        (IMAGE | {"strength": float("nan")}, "strength is nan"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be at least 1"),
        ({"num_inference_steps": -3}, "num_inference_steps is -3"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"num_inference_steps": 10**12}, "num_inference_steps is 1000000000000"),
        ({"height": 60}, "height is 60; it must be a positive multiple of 8"),
        ({"width": 4}, "width is 4; it must be a positive multiple of 8"),
        ({"height": 0}, "height is 0"),
        ({"width": -8}, "width is -8"),
        ({"height": 80_000, "width": 80_000}, "80000x80000 is 6,400,000,000 pixels; at most"),
        (IMAGE | {"height": 30}, "height is 30"),
        ({"image": Image.new("RGB", (64, 5))}, "height is 0"),
        ({"image": 3}, "image is of the type int; it must be a path or a PIL image"),
        ({"image": [IMAGE["image"]] * 2}, "image holds 2 pictures for 1 prompts"),
        ({"image": []}, "image holds 0 pictures for 1 prompts"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"prompt": []}, "0 prompts"),
        ({"prompt": [3]}, r"prompt is \[3\]; expected a text or a list of texts"),
        ({"prompt": None}, "prompt is None; give a text"),
        ({"width": 64.0}, r"width is 64\.0; it must be a whole number"),
        ({"seed": 1.5}, r"seed is 1\.5; it must be a whole number"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 texts for 1 prompts"),
        ({"seed": -1}, "seed is -1; it must be a whole number in"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": 1, "generator": generator(1)}, "seed and generator are both given"),
        ({"generator": generators(1, 3)}, "generator holds 3 generators for 1 pictures"),
        ({"latents": torch.zeros(1, 4, 8, 9)}, r"latents has the shape \(1, 4, 8, 9\); expected"),
        ({"sampler": "magic"}, "sampler is 'magic'; expected one of ddpm"),
        ({"sampler": "pndm_karras"}, "schedule 'karras' does not suit sampler 'pndm'"),
        ({"sampler": "euler_karras", "schedule": "beta"}, "leave one of them out"),
        ({"schedule": "magic"}, "schedule is 'magic'; expected one of normal"),
        ({"eta": 2.0}, r"eta is 2\.0; it must be in \[0, 1\]"),
        ({"eta": 0.5, "sampler": "euler"}, "sampler 'euler' has no eta"),
        ({"clip_skip": -1}, "clip_skip is -1; it must be at least 0"),
        ({"clip_skip": 3}, "clip_skip leaves out 3 layers of 3"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"output_type": "jpg"}, "output_type is 'jpg'; expected 'pil', 'pt', 'np' or 'latent'"),
    ],
)
def test_bad_arguments(ours: Pipeline, arguments: dict[str, Any], message: str) -> None:
    """One line, and nothing was computed."""
    parts = (ours.unet.conv_in, ours.vae.encoder.conv_in, ours.text_encoder.text_model.embeddings)
    computed: list[Any] = []
    hooks = [part.register_forward_hook(lambda *seen: computed.append(seen)) for part in parts]
    try:
        with pytest.raises(ArgumentError, match=message) as caught:
            ours(**{"prompt": PROMPT, "num_inference_steps": 1, **arguments})
    finally:
        for hook in hooks:
            hook.remove()
    assert "\n" not in str(caught.value)
    assert not computed


def test_missing_image(ours: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png"):
        ours(PROMPT, image=tmp_path / "nothing.png")


def test_devices_and_dtypes() -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == choose_device(cpu) == cpu
    assert choose_dtype("float32", cpu) == torch.float32
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(ArgumentError, match="device is 'nothing'"):
        choose_device("nothing")
    with pytest.raises(ArgumentError, match=r"device is 'meta'|device is 'xpu'"):
        choose_device("xpu")
    with pytest.raises(ArgumentError, match="dtype is 'int8'; expected one of float32"):
        choose_dtype("int8", cpu)
    with pytest.raises(ArgumentError, match="dtype is float16, which CPUs"):
        choose_dtype(torch.float16, cpu)


@pytest.mark.parametrize("native", [True, False])
def test_cpus_that_have_bfloat16_use_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "native_bfloat16", lambda: native)
    pipe = Pipeline.from_pretrained(device="cpu")
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    dtypes = {parameter.dtype for part in parts for parameter in part.parameters()}
    assert dtypes == {torch.bfloat16 if native else torch.float32}


# Broken models


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


BREAK: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (lambda m: (m / "model_index.json").unlink(), "model_index.json does not exist"),
    "no unet": (lambda m: shutil.rmtree(m / "unet"), "unet does not exist"),
    "no weights": (
        lambda m: (m / "text_encoder" / "model.safetensors").unlink(),
        "text_encoder holds no weights",
    ),
    "no tokenizer": (lambda m: shutil.rmtree(m / "tokenizer"), "tokenizer.*does not exist"),
    "no scheduler": (
        lambda m: (m / "scheduler" / "scheduler_config.json").unlink(),
        "scheduler_config.json does not exist",
    ),
    "another pipeline": (
        lambda m: edit_json(m / "model_index.json", _class_name="FluxPipeline"),
        "model_index.json is of a FluxPipeline",
    ),
    "unknown noise": (
        lambda m: edit_json(m / "scheduler" / "scheduler_config.json", beta_schedule="laplace"),
        "beta_schedule is 'laplace'",
    ),
    "unknown prediction": (
        lambda m: edit_json(m / "scheduler" / "scheduler_config.json", prediction_type="flow"),
        "prediction_type is 'flow'",
    ),
    "another unet": (
        lambda m: edit_json(m / "unet" / "config.json", class_embed_type="projection"),
        "class_embed_type is 'projection'",
    ),
}


@pytest.mark.parametrize("case", BREAK)
def test_broken_folders(folder: Path, tmp_path: Path, case: str) -> None:
    change, message = BREAK[case]
    model = shutil.copytree(folder, tmp_path / "model")
    change(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        Pipeline.from_pretrained(model, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value) or "_" in case or case.startswith("unknown")


def test_parts_that_do_not_fit(ours: Pipeline) -> None:
    def rebuilt(**values: Any) -> nn.Module:
        with torch.device("meta"):
            return type(ours.unet)(replace(ours.unet.config, **values))

    parts = (ours.vae, ours.text_encoder, ours.tokenizer)
    with pytest.raises(CheckpointError, match=r"reads texts of width 40, .* write 32"):
        Pipeline(*parts, rebuilt(cross_attention_dim=40))
    with pytest.raises(CheckpointError, match=r"7 input channels .* expected 4, 9 for"):
        Pipeline(*parts, rebuilt(in_channels=7))


def test_unknown_sampler_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    """It loads, and draws with a sampler that is asked for."""
    model = shutil.copytree(folder, tmp_path / "model")
    edit_json(model / "scheduler" / "scheduler_config.json", _class_name="UnheardOfScheduler")
    pipe = Pipeline.from_pretrained(model, device="cpu")
    with pytest.raises(CheckpointError, match=r"'UnheardOfScheduler'.*choose a sampler"):
        pipe(PROMPT)
    assert pipe(PROMPT, sampler="ddim", num_inference_steps=1).images


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("unet", "mid_block.resnets.0.conv1.weight"),
        ("text_encoder", "text_model.encoder.layers.1.mlp.fc1.bias"),
        ("vae", "decoder.conv_out.bias"),
        ("vae", "encoder.conv_in.weight"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    folder: Path, tmp_path: Path, part: str, key: str, value: float
) -> None:
    """Named, never a black picture."""
    model = shutil.copytree(folder, tmp_path / "model")
    (file,) = (model / part).glob("*.safetensors")
    tensors = load_file(file)
    stored = key if key in tensors else key.removeprefix("text_model.")
    tensors[stored].view(-1)[0] = value
    save_file(tensors, file, {"format": "pt"})
    pipe = Pipeline.from_pretrained(model, device="cpu")
    seen = []
    with pytest.raises(CheckpointError, match=rf"{key} of the {part} holds NaN or infinite"):
        for progress in pipe.stream(PROMPT, num_inference_steps=4, **IMAGE):
            seen.append(progress.step)
    assert not seen or (part, key.split(".")[0]) == ("vae", "decoder")  # told at the first step


def test_a_decoder_that_overflows_is_asked_again_in_float32(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    for layer in (pipe.vae.post_quant_conv, pipe.vae.decoder.conv_in):
        layer.weight.mul_(300)
        layer.bias.mul_(300)
    latents = torch.randn(2, 4, 5, 6, generator=generator(0))
    want = pipe.decode(latents)
    pipe.vae.half()
    half = pipe.vae.decode(latents.half())
    assert not half.isfinite().all()
    with pytest.warns(UserWarning, match="overflows in torch.float16: decoding in float32"):
        assert difference(pipe.decode(latents), want) <= 0.02


# Offline, from anywhere


OFFLINE = """
import socket, sys
def blocked(*args, **kwargs):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = blocked
from ldm.pipeline import Pipeline
pipe = Pipeline.from_pretrained(sys.argv[1], device="cpu", dtype="float32")
pipe("a red car", num_inference_steps=1, seed=1).images[0].save("car.png")
print(*{"diffusers", "transformers"} & set(sys.modules))
"""


def test_offline_and_from_another_folder(
    ours: Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(ldm.__file__).parents[1]))
    command = [sys.executable, "-c", OFFLINE, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    images = [Image.open(tmp_path / "car.png")]
    assert difference(pixels(images), pixels(draw(ours, seed=1, num_inference_steps=1)[1])) <= 1
