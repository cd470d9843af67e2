"""What ``ldm-generate`` writes into a picture's file: how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ldm import __version__
from ldm.cli.common import number
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
    """How a picture was made: as A1111 writes it into the file, and all of it exactly."""
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


def label(name: str) -> str:
    """Return what A1111's web UI calls an option in a picture's file."""
    return about(FIELDS[name]).label


def common_settings(pipe: Pipeline, job: Job, picture: Image) -> dict[str, Any]:
    """Return what every file says, under A1111's names."""
    arguments = job.line.arguments
    choice = pipe.choose_sampler(arguments.sampler, arguments.schedule)
    steps, scale = arguments.num_inference_steps, arguments.guidance_scale
    return {
        label("prompt"): job.prompt,
        label("negative_prompt"): arguments.negative_prompt,
        label("num_inference_steps"): steps or pipe.defaults.num_inference_steps,
        label("sampler"): SAMPLERS[choice.name].label,
        label("schedule"): SCHEDULES[choice.schedule].label,
        label("guidance_scale"): number(pipe.defaults.guidance_scale if scale is None else scale),
        label("seed"): job.seed,
        "Size": f"{picture.width}x{picture.height}",
        "Model": model_name(arguments.model),
        "VAE": model_name(arguments.vae) if arguments.vae else None,
    }


def special_settings(job: Job) -> dict[str, Any]:
    """Return what only some pictures are drawn with, under A1111's names; None where it is off."""
    own = job.line.arguments
    hires, strength = own.hires_scale is not None, pass_strength(own)
    return {
        label("mask_blur"): number(own.mask_blur) if masked(own) else None,
        label("hires_scale"): number(own.hires_scale) if hires else None,
        "Hires upscaler": "Lanczos" if hires else None,
        label("strength"): None if strength is None else number(strength),
        label("variation_seed"): job.variation_seed,
        label("variation_strength"): own.variation_strength,
        label("tiling"): own.tiling or None,
        label("guidance_rescale"): own.guidance_rescale or None,
        label("classifier_scale"): own.classifier_scale,
        label("clip_skip"): own.clip_skip if own.clip_skip > 1 else None,
        label("eta"): number(own.eta) if own.eta else None,
    }
