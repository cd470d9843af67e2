"""The settings of a picture as text in the form of A1111's web UI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.config.arguments import about
from ldm.config.upscalers import upscaler_label
from ldm.images.control_text import control_labels, ip_adapter_labels, reference_unit
from ldm.images.generation_info import GenerationInfo
from ldm.images.metadata import format_parameters
from ldm.request import ALL_FIELDS, LargeRequest
from ldm.samplers import SAMPLERS, SCHEDULES

LABELS = {name: about(field).label for name, field in ALL_FIELDS.items()}


def generation_text(
    info: GenerationInfo, size: tuple[int, int], version: str, more: Mapping[str, Any] | None = None
) -> str:
    """Format the settings of a picture of ``size`` (width, height) as the web UI does.

    more: further settings, under their names there.
    """
    networks = len(info.controlnets) + len(info.t2i_adapters)
    return format_parameters(
        {
            **common_settings(info, size),
            **special_settings(info),
            **control_labels(
                info.arguments, info.controlnets, info.t2i_adapters, info.preprocessors
            ),
            **ip_adapter_labels(info.arguments, info.ip_adapters, networks),
            **reference_label(info, networks + len(info.ip_adapters)),
            "RNG": "CPU",
            "Grid": info.grid,
            "Template": info.template,
            **(more or {}),
            "Version": f"ldm {version}",
        }
    )


def reference_label(info: GenerationInfo, number: int) -> dict[str, str]:
    """Return the reference picture's settings, as a unit of this number behind the others."""
    if "reference_image" not in info.images:
        return {}
    return {f"ControlNet {number}": reference_unit(info.arguments)}


def label(name: str) -> str:
    """Return the web UI's name of an argument."""
    return LABELS[name]


def number_text(value: float) -> str:
    """Write a number exactly, 7.0 as 7."""
    return repr(float(value)).removesuffix(".0")


def common_settings(info: GenerationInfo, size: tuple[int, int]) -> dict[str, Any]:
    """Return the settings of every picture, under the web UI's names."""
    given, edits = info.arguments, info.arguments.get("image_guidance_scale")
    return {
        label("prompt"): given["prompt"],
        label("negative_prompt"): given.get("negative_prompt"),
        label("num_inference_steps"): given["num_inference_steps"],
        label("sampler"): SAMPLERS[given["sampler"]].label,
        label("schedule"): SCHEDULES[given["schedule"]].label,
        label("guidance_scale"): number_text(given["guidance_scale"]),
        label("image_guidance_scale"): None if edits is None else number_text(edits),
        label("seed"): given.get("seed"),
        "Size": "x".join(map(str, first_size(given, size))),
        "Model": info.model,
        "Refiner": info.refiner,
        label("refiner_start"): given.get("refiner_start"),
        "VAE": info.vae,
    }


def first_size(given: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) of the first pass, which is what Size means in the web UI.

    size: of the picture, which is that of the only pass.
    """
    scale = given.get("hires_scale")
    if scale is None:
        return size
    exact = [side / scale for side in size]
    width, height = (int(s) if s.is_integer() else round(s / 8) * 8 for s in exact)
    return given.get("width", width), given.get("height", height)


def special_settings(info: GenerationInfo) -> dict[str, Any]:
    """Return the settings of some pictures, under the web UI's names; None if it is off."""
    given, hires = info.arguments, "hires_scale" in info.arguments
    masked = "mask" in info.images or "outpaint" in given
    strength = given.get("strength") if "image" in info.images else None
    if hires:
        strength = given.get("hires_strength", LargeRequest.hires_strength)
    upscaler = given.get("hires_upscaler", LargeRequest.hires_upscaler)
    blur = given.get("mask_blur", LargeRequest.mask_blur)
    clip_skip = given.get("clip_skip")
    return {
        label("mask_blur"): number_text(blur) if masked else None,
        label("hires_scale"): number_text(given["hires_scale"]) if hires else None,
        label("hires_steps"): given.get("hires_steps") if hires else None,
        label("hires_upscaler"): upscaler_label(upscaler) if hires else None,
        label("strength"): None if strength is None else number_text(strength),
        label("variation_seed"): given.get("variation_seed"),
        label("variation_strength"): given.get("variation_strength"),
        label("tiling"): given.get("tiling") or None,
        label("guidance_rescale"): given.get("guidance_rescale") or None,
        label("classifier_scale"): given.get("classifier_scale"),
        label("clip_skip"): clip_skip + 1 if clip_skip else None,
        label("eta"): number_text(given["eta"]) if given.get("eta") else None,
        "Not in the file": ", ".join(info.missing) or None,
    }
