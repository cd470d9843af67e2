"""The layout of many pictures on one in ``ldm-generate``: ``--grid``, ``--x`` and ``--y``."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from ldm.cli.choices import reads_choices

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.cli.jobs import Job
    from ldm.cli.plots import Plot


def grid_columns(arguments: argparse.Namespace, count: int) -> int:
    """Count columns: a row for each prompt with several pictures, else about a square."""
    rows_of_prompts = len(arguments.prompt) > 1 and arguments.num_images > 1
    return arguments.num_images if rows_of_prompts else math.ceil(math.sqrt(count))


def lay_out(
    pictures: list[Image], jobs: list[Job], arguments: argparse.Namespace, plot: Plot | None
) -> tuple[Image, int]:
    """Lay out all pictures on one with labels; also return the number of columns."""
    from ldm.images import image_grid
    from ldm.images.sheets import sheet

    columns = plot.columns if plot else grid_columns(arguments, len(jobs))
    if arguments.no_labels:
        return image_grid(pictures, columns), columns
    if plot:
        tops, lefts = (axis.titles if axis else () for axis in (plot.x, plot.y))
        return sheet(pictures, columns, column_titles=tops, row_titles=lefts), columns
    several = len(arguments.prompt) > 1
    if several and arguments.num_images > 1:
        drawn = reads_choices(arguments) and not arguments.all
        labels = [job.prompt if drawn else f"seed {job.seed}" for job in jobs]
        return sheet(pictures, columns, labels, row_titles=arguments.prompt), columns
    several |= any(job.template for job in jobs)
    labels = [job.prompt if several else f"seed {job.seed}" for job in jobs]
    return sheet(pictures, columns, labels), columns
