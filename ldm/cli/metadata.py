"""What ``ldm-generate`` writes into a picture's file: how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ldm import __version__
from ldm.cli.common import number
from ldm.cli.guidance_options import steering_metadata
from ldm.cli.replay import drawn_on, info_of, model_name
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

    arguments = job.line.arguments
    choice = pipe.choose_sampler(arguments.sampler, arguments.schedule)
    defaults = pipe.defaults
    scale = arguments.guidance_scale
    place = (len(batch), batch.index(job)) if len(batch) > 1 else arguments.replay
    info = replace(info_of(job, pipe, picture), batch=place, grid=grid)
    text = format_parameters(
        {
            "Prompt": job.prompt,
            "Negative prompt": arguments.negative_prompt,
            "Steps": arguments.num_inference_steps or defaults.num_inference_steps,
            "Sampler": SAMPLERS[choice.name].label,
            "Schedule type": SCHEDULES[choice.schedule].label,
            "CFG scale": number(defaults.guidance_scale if scale is None else scale),
            "Seed": job.seed,
            "Size": f"{picture.width}x{picture.height}",
            "Model": model_name(arguments.model),
            "VAE": model_name(arguments.vae) if arguments.vae else None,
            **steering_metadata(arguments, job.variation_seed),
            "Clip skip": arguments.clip_skip if arguments.clip_skip > 1 else None,
            "Eta": number(arguments.eta) if arguments.eta else None,
            "RNG": "CPU",
            "Grid": grid,
            **(plot.metadata if plot else {}),
            "Version": f"ldm {__version__}",
        }
    )
    return text, info.settings(__version__, drawn_on(pipe))
