"""Class pictures that are missing, drawn by the model that is to be trained (DreamBooth)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from PIL import Image

from ldm.errors import ArgumentError
from ldm.images.files import save_image
from ldm.pipeline import Pipeline
from ldm.training.data.listing import list_files


def draw_class_pictures(
    pipe: Pipeline, prompt: str, folder: Path, count: int, batch_size: int = 4, seed: int = 0
) -> list[Path]:
    """Draw pictures until a folder has ``count``; returns the new ones.

    Pictures that are there are kept and counted. Number i is drawn from ``seed`` + i, at the
    model's own size and settings, and is written to ``000i.png``: what a call that was killed has
    left out, the next one draws. Progress is shown as by ``Pipeline``.

    On several processes, only one may call it.
    Raises ArgumentError where the folder has metadata, which new pictures would not be in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = list_files(folder)
    missing = count - len(found.pictures)
    if missing <= 0:
        return []
    if found.metadata:
        raise ArgumentError(
            f"{folder} has {len(found.pictures)} pictures of {count}, and {found.metadata[0]}, "
            "in which pictures that are drawn would be missing; give it more pictures, or set "
            f"options.num_class_images to {len(found.pictures)}"
        )
    free = [i for i in range(count) if not (folder / name_of(i)).exists()][:missing]
    drawn = []
    for begin in range(0, len(free), batch_size):
        numbers = free[begin : begin + batch_size]
        seeds = [seed + i for i in numbers]
        output = pipe([prompt] * len(numbers), seed=seeds)
        for number, picture in zip(numbers, cast("list[Image.Image]", output.images), strict=True):
            save_image(picture, folder / name_of(number))
            drawn.append(folder / name_of(number))
    return drawn


def name_of(number: int) -> str:
    """Return the file name of a class picture."""
    return f"{number:04d}.png"
