"""Small random models of every family, as diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ldm.checkpoints.assets import asset_path
from tests.helpers.networks import randomize
from tests.helpers.pictures import quiet

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

CLASSES = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}
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


def pix2pix() -> Any:
    return sd("StableDiffusionInstructPix2PixPipeline", unet=unet(in_channels=8))


def pix2pix_xl() -> Any:
    return sdxl("StableDiffusionXLInstructPix2PixPipeline", unet=xl_unet(in_channels=8))


def depth() -> Any:
    """SD 2 depth, without the estimator that makes its depth maps."""
    parts = sd2().components | {"unet": unet(in_channels=5, use_linear_projection=True)}
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False)
    names = ("vae", "text_encoder", "tokenizer", "unet")
    return diffusers.StableDiffusionDepth2ImgPipeline(
        **{name: parts[name] for name in names},
        scheduler=scheduler,
        depth_estimator=None,
        feature_extractor=None,
    )


# Distilled structures: what their configurations change, smaller.
THREE_LEVELS = {
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 6),
}


def ssd1b() -> Any:
    """SSD-1B, layer by layer as published."""
    return sdxl(
        unet=xl_unet(
            **THREE_LEVELS,
            layers_per_block=2,
            mid_block_type="UNetMidBlock2D",
            transformer_layers_per_block=[[1], [2, 2], [4, 4]],
            reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
        )
    )


def koala() -> Any:
    """KOALA-700M: one layer less, and no middle."""
    layers = {"transformer_layers_per_block": (1, 2, 5), "mid_block_type": None}
    return sdxl(unet=xl_unet(**THREE_LEVELS, **layers))


def bk_tiny() -> Any:
    """BK-SDM-Tiny: no middle, and attention at the coarsest level."""
    return sd(
        unet=unet(
            down_block_types=["CrossAttnDownBlock2D"] * 2,
            up_block_types=["CrossAttnUpBlock2D"] * 2,
            mid_block_type=None,
        )
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    each.__name__: each
    for each in (
        sd, sd2, sd_inpaint, sd_turbo, lcm, sdxl, refiner, sdxl_inpaint, sdxl_turbo,
        pix2pix, pix2pix_xl, depth, ssd1b, koala, bk_tiny,
    )
}  # fmt: skip


def for_task(theirs: Any, task: str) -> Any:
    """diffusers' pipeline of a task with the parts of another; "own" is its own task."""
    name = type(theirs).__name__
    if task == "own":
        return quiet(theirs)
    if name.startswith("LatentConsistency") and task != "inpaint":
        kind = "LatentConsistencyModelImg2ImgPipeline" if task == "image" else name
        return quiet(getattr(diffusers, kind)(**theirs.components, requires_safety_checker=False))
    base = "StableDiffusionXL" if "XL" in name else "StableDiffusion"
    cls = getattr(diffusers, f"{base}{CLASSES[task]}Pipeline")
    if isinstance(theirs, cls):
        return quiet(theirs)
    options = {"add_watermarker": False} if "XL" in name else {"requires_safety_checker": False}
    if "XL" in name:
        options["force_zeros_for_empty_prompt"] = theirs.config.force_zeros_for_empty_prompt
        if task != "text":
            score = theirs.config.get("requires_aesthetics_score", False)
            options["requires_aesthetics_score"] = score
    return quiet(cls(**theirs.components, **options))
