"""The metadata that ``ldm-generate`` writes into a picture's file: how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ldm import __version__
from ldm.cli.common import number_text
from ldm.cli.fields import FIELDS
from ldm.cli.guidance_options import masked, pass_strength
from ldm.cli.replay import drawn_on, info_of, model_name
from ldm.request import about
from ldm.samplers import SAMPLERS, SCHEDULES

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.cli.jobs import Job
    from ldm.cli.plots import Plot
    from ldm.pipeline import Pipeline


def picture_texts(
    pipe: Pipeline,
    job: Job,
    picture: Image,
    batch: Sequence[Job] = (),
    grid: str | None = None,
    plot: Plot | None = None,
) -> tuple[str, dict[str, Any]]:
    """Describe how a picture was made: in A1111's text form, and exactly in all settings."""
    from ldm.images.metadata import format_parameters

    place = (len(batch), batch.index(job)) if len(batch) > 1 else job.line.arguments.replay
    info = replace(info_of(job, pipe, picture), batch=place, grid=grid)
    text = format_parameters(
        {
            **common_settings(pipe, job, picture),
            **special_settings(job),
            "RNG": "CPU",
            "Grid": grid,
            **(plot.metadata if plot else {}),
            "Version": f"ldm {__version__}",
        }
    )
    return text, info.settings(__version__, drawn_on(pipe))


def setting_label(name: str) -> str:
    """Return the name of an option in the text that A1111's web UI writes."""
    return about(FIELDS[name]).label


def common_settings(pipe: Pipeline, job: Job, picture: Image) -> dict[str, Any]:
    """Return the settings of every picture, under A1111's names."""
    arguments = job.line.arguments
    choice = pipe.choose_sampler(arguments.sampler, arguments.schedule)
    steps, scale = arguments.num_inference_steps, arguments.guidance_scale
    return {
        setting_label("prompt"): job.prompt,
        setting_label("negative_prompt"): arguments.negative_prompt,
        setting_label("num_inference_steps"): steps or pipe.defaults.num_inference_steps,
        setting_label("sampler"): SAMPLERS[choice.name].label,
        setting_label("schedule"): SCHEDULES[choice.schedule].label,
        setting_label("guidance_scale"): number_text(
            pipe.defaults.guidance_scale if scale is None else scale
        ),
        setting_label("seed"): job.seed,
        "Size": f"{picture.width}x{picture.height}",
        "Model": model_name(arguments.model),
        "Refiner": model_name(arguments.refiner) if arguments.refiner else None,
        setting_label("refiner_start"): arguments.refiner_start,
        "VAE": model_name(arguments.vae) if arguments.vae else None,
    }


def special_settings(job: Job) -> dict[str, Any]:
    """Return the settings of some pictures, under A1111's names; None if it is off."""
    own = job.line.arguments
    hires, strength = own.hires_scale is not None, pass_strength(own)
    return {
        setting_label("mask_blur"): number_text(own.mask_blur) if masked(own) else None,
        setting_label("hires_scale"): number_text(own.hires_scale) if hires else None,
        "Hires upscaler": "Lanczos" if hires else None,
        setting_label("strength"): None if strength is None else number_text(strength),
        setting_label("variation_seed"): job.variation_seed,
        setting_label("variation_strength"): own.variation_strength,
        setting_label("tiling"): own.tiling or None,
        setting_label("guidance_rescale"): own.guidance_rescale or None,
        setting_label("classifier_scale"): own.classifier_scale,
        setting_label("clip_skip"): own.clip_skip if own.clip_skip > 1 else None,
        setting_label("eta"): number_text(own.eta) if own.eta else None,
    }
