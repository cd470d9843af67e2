"""Small random ControlNets of diffusers', whose zero convolutions are not zero."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.networks import randomize
from tests.helpers.pictures import quiet

diffusers = pytest.importorskip("diffusers")

HINTS = {"conditioning_embedding_out_channels": (8, 8, 16, 16)}
PIPELINES = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}


def controlnet_for(theirs: Any, seed: int = 0, **changes: Any) -> Any:
    """A ControlNet for the U-Net of a pipeline, of latents of 4 channels."""
    unet = theirs.unet
    made = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    config = dict(made.config) | {"in_channels": 4} | HINTS | changes
    made = diffusers.ControlNetModel.from_config(config)
    return randomize(made, 100 + seed)


def control_pipeline(theirs: Any, networks: Any, task: str) -> Any:
    """diffusers' pipeline of a task, with the parts of another and one or several ControlNets."""
    xl = "XL" in type(theirs).__name__
    base = "StableDiffusionXL" if xl else "StableDiffusion"
    cls = getattr(diffusers, f"{base}ControlNet{PIPELINES[task]}Pipeline")
    parts = dict(theirs.components)
    if xl:
        parts.pop("image_encoder", None)
        parts.pop("feature_extractor", None)
        options: dict[str, Any] = {"add_watermarker": False}
        options["force_zeros_for_empty_prompt"] = theirs.config.force_zeros_for_empty_prompt
    else:
        options = {"requires_safety_checker": False}
    return quiet(cls(**parts, controlnet=networks, **options))
