"""The metadata that ``ldm-generate`` writes into a picture's file: how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ldm import __version__
from ldm.cli.replay import info_of

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
    from ldm.images.generation_text import generation_text
    from ldm.output.record import drawn_on

    place = (len(batch), batch.index(job)) if len(batch) > 1 else job.line.arguments.replay
    prompts = job.line.arguments.batch_prompts
    if job.line.arguments.style_aligned and len(batch) > 1:
        prompts = tuple(each.text for each in batch)
    info = replace(info_of(job, pipe, picture), batch=place, batch_prompts=prompts, grid=grid)
    text = generation_text(info, picture.size, __version__, plot.metadata if plot else None)
    return text, info.settings(__version__, drawn_on(pipe))
