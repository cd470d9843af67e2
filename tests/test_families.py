"""Every family: the pictures of diffusers' own pipelines on the same small random folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomize
from PIL import Image
from test_pipeline import assert_same, draw, draw_theirs, generator, quiet

from ldm.assets import asset_path
from ldm.pipeline import Pipeline

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def unet(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    }
    return randomize(diffusers.UNet2DConditionModel(**(settings | changes)), 3)


def xl_unet(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "cross_attention_dim": 32 + 48,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
    }
    return unet(**(settings | changes))


def vae(**changes: Any) -> Any:
    model = diffusers.AutoencoderKL(
        sample_size=64,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=8,
        **changes,
    )
    return randomize(model, 1)


def text_encoder(width: int = 32, projected: bool = False, **changes: Any) -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=24,
        **changes,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return randomize(kind(config), width)


def tokenizer(**changes: Any) -> Any:
    folder = asset_path("weights") / "tokenizer"
    return transformers.CLIPTokenizer.from_pretrained(folder, **changes)


def sd(cls: str = "StableDiffusionPipeline", **changes: Any) -> Any:
    parts = {
        "vae": vae(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "unet": unet(),
        "scheduler": diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return getattr(diffusers, cls)(**(parts | changes))


def sd2() -> Any:
    return sd(
        text_encoder=text_encoder(hidden_act="gelu"),
        tokenizer=tokenizer(pad_token="!"),
        unet=unet(use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True),
        scheduler=diffusers.DDIMScheduler(
            **SCHEDULE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
        ),
    )


def sd_inpaint() -> Any:
    return sd("StableDiffusionInpaintPipeline", unet=unet(in_channels=9))


def sd_turbo() -> Any:
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
    return sd(scheduler=scheduler)


def lcm() -> Any:
    parts = sd().components
    parts |= {"unet": unet(time_cond_proj_dim=16), "scheduler": diffusers.LCMScheduler(**SCHEDULE)}
    return diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


def sdxl(cls: str = "StableDiffusionXLPipeline", **changes: Any) -> Any:
    parts = {
        "vae": vae(scaling_factor=0.13025, force_upcast=True),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "text_encoder_2": text_encoder(48, projected=True, hidden_act="gelu"),
        "tokenizer_2": tokenizer(pad_token="!"),
        "unet": xl_unet(),
        "scheduler": diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
        "add_watermarker": False,
    }
    return getattr(diffusers, cls)(**(parts | changes))


def refiner() -> Any:
    return sdxl(
        "StableDiffusionXLImg2ImgPipeline",
        text_encoder=None,
        tokenizer=None,
        unet=xl_unet(cross_attention_dim=48, projection_class_embeddings_input_dim=24 + 5 * 8),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )


def sdxl_inpaint() -> Any:
    return sdxl("StableDiffusionXLInpaintPipeline", unet=xl_unet(in_channels=9))


def sdxl_turbo() -> Any:
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
    return sdxl(scheduler=scheduler)


FAMILIES: dict[str, Callable[[], Any]] = {
    each.__name__: each
    for each in (
        sd, sd2, sd_inpaint, sd_turbo, lcm, sdxl, refiner, sdxl_inpaint, sdxl_turbo,
    )
}  # fmt: skip
TASKS = {
    "text": ["sd2", "sd_turbo", "lcm", "sdxl", "sdxl_turbo"],
    "image": ["sd2", "sd_turbo", "sdxl", "refiner", "sdxl_turbo"],
    "inpaint": ["sd", "sd_inpaint", "sd2", "sdxl", "sdxl_inpaint"],
}
CLASSES = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Pipeline, Any]]:
    """(ours, diffusers' pipeline) of a family, both from one folder."""
    made: dict[str, tuple[Pipeline, Any]] = {}

    def get(family: str) -> tuple[Pipeline, Any]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            theirs = FAMILIES[family]()
            theirs.save_pretrained(folder)
            made[family] = Pipeline.from_pretrained(folder, device="cpu"), theirs
        return made[family]

    return get


def for_task(theirs: Any, task: str) -> Any:
    """diffusers' pipeline of a task with the parts of another."""
    name = type(theirs).__name__
    if name.startswith("LatentConsistency"):
        return quiet(theirs)
    base = "StableDiffusionXL" if "XL" in name else "StableDiffusion"
    cls = getattr(diffusers, f"{base}{CLASSES[task]}Pipeline")
    if isinstance(theirs, cls):
        return quiet(theirs)
    options = {"add_watermarker": False} if "XL" in name else {"requires_safety_checker": False}
    return quiet(cls(**theirs.components, **options))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 150, 64)[None, :, None]
    return Image.fromarray((slope + rng.integers(0, 100, (40, 64, 3))).astype(np.uint8))


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    values = np.zeros((40, 64), np.uint8)
    values[5:33, 13:41] = 255
    values[20:, 30:] = 128
    values[30:36, 2:9] = 126
    return Image.fromarray(values)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("family", TASKS["text"])
def test_text_to_image(model: Any, family: str, guidance: float) -> None:
    ours, theirs = model(family)
    arguments = {"num_inference_steps": 4, "guidance_scale": guidance, "height": 40, "width": 64}
    want = draw_theirs(for_task(theirs, "text"), generator=generator(3), **arguments)
    assert_same(draw(ours, seed=3, **arguments), want)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("family", TASKS["image"])
def test_image_to_image(model: Any, picture: Image.Image, family: str, strength: float) -> None:
    ours, theirs = model(family)
    arguments = {
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "image": picture,
        "strength": strength,
    }
    want = draw_theirs(for_task(theirs, "image"), generator=generator(5), **arguments)
    assert_same(draw(ours, seed=5, **arguments), want)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("family", TASKS["inpaint"])
def test_inpainting(
    model: Any, picture: Image.Image, mask: Image.Image, family: str, strength: float
) -> None:
    ours, theirs = model(family)
    arguments = {
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "image": picture,
        "mask_image": mask,
        "height": 40,
        "width": 64,
        "strength": strength,
    }
    want = draw_theirs(for_task(theirs, "inpaint"), generator=generator(5), **arguments)
    assert_same(draw(ours, seed=5, **arguments), want)


@pytest.mark.parametrize("family", ["sdxl", "refiner"])
@pytest.mark.parametrize("negative", ["", "blurry"])
def test_negative_prompts_of_sdxl(model: Any, picture: Any, family: str, negative: str) -> None:
    """An empty one is not an absent one: base takes zeros for that."""
    ours, theirs = model(family)
    arguments: dict[str, Any] = {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "negative_prompt": [negative] * 2,
        "num_images_per_prompt": 2,
    }
    task = "image" if family == "refiner" else "text"
    if task == "image":
        arguments |= {"image": picture, "strength": 0.8}
    prompts = ["a red car", "two"]
    want = draw_theirs(for_task(theirs, task), prompts, generator=generator(5), **arguments)
    assert_same(draw(ours, prompts, generator=generator(5), **arguments), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_we_save_diffusers_loads(model: Any, tmp_path: Path, family: str) -> None:
    ours, theirs = model(family)
    ours.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is type(theirs)
    for name, part in theirs.components.items():
        if isinstance(part, torch.nn.Module):
            values = getattr(loaded, name).state_dict()
            for key, value in part.state_dict().items():
                assert torch.equal(values[key], value)
    again = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert again.unet.config == ours.unet.config
    assert again.force_zeros_for_empty_prompt == ours.force_zeros_for_empty_prompt


def test_lcm_visits_the_timesteps_of_diffusers(model: Any) -> None:
    from ldm.samplers import plan

    ours, _ = model("lcm")
    theirs = diffusers.LCMScheduler(**SCHEDULE)
    for n in range(1, 51):
        theirs.set_timesteps(n)
        assert [a.t for a, _ in plan(ours.scheduler, "lcm", n)] == theirs.timesteps.tolist()
