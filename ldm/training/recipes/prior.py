"""DreamBooth's prior preservation: class pictures beside those to learn (Ruiz et al. 2023, 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.config.settings import within
from ldm.errors import ArgumentError, DataError
from ldm.training.data import Pictures, open_data
from ldm.training.data.joined import WithClassPictures
from ldm.training.data.listing import list_files


@dataclass(kw_only=True)
class PriorOptions:
    """Prompts for pictures without captions, and class pictures, which keep what the base knows.

    With a ``class_prompt``, half of each batch are class pictures, "a photo of a dog", beside those
    of ``data``, "a photo of sks dog".
    """

    instance_prompt: str | None = None  # the caption of pictures of ``data`` without one
    class_prompt: str | None = None  # what class pictures are drawn with; their caption, if none
    # The folder of class pictures; by default ``class_pictures`` in the run folder.
    class_data: str | None = None
    num_class_images: int = within("[1, inf)", 100)  # those that are missing are drawn by the base
    prior_loss_weight: float = within("[0, inf)", 1.0)  # λ of the class pictures' loss


def check_prior(options: PriorOptions, batch_size: int) -> None:
    """Raise ArgumentError for options that do not go together."""
    if options.class_data and options.class_prompt is None:
        raise ArgumentError(
            f"options.class_data is {options.class_data}; give options.class_prompt, what its "
            "pictures show without the word to learn, such as 'a photo of a dog'"
        )
    if options.class_prompt is not None and batch_size % 2:
        raise ArgumentError(
            f"batch_size is {batch_size}, but half of each batch are class pictures; give an even "
            "one, or leave options.class_prompt out"
        )


def new_word(options: PriorOptions) -> str | None:
    """Return the first word of the pictures' prompt that the class's lacks: the one to learn.

    "sks" of "a photo of sks dog" and "a photo of a dog"; None without both prompts.
    """
    if options.instance_prompt is None or options.class_prompt is None:
        return None
    known = options.class_prompt.lower().split()
    return next((w for w in options.instance_prompt.split() if w.lower() not in known), None)


def class_folder(options: PriorOptions, output: str) -> Path:
    """Return the folder of class pictures. Raises DataError for what is no folder."""
    folder = Path(options.class_data or Path(output) / "class_pictures")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"options.class_data is {folder}, which is no folder of pictures")
    return folder


def missing_class_pictures(options: PriorOptions, output: str) -> int:
    """Return how many class pictures are still to be drawn. Raises as ``class_folder`` does."""
    if options.class_prompt is None:
        return 0
    folder = class_folder(options, output)
    there = len(list_files(folder).pictures) if folder.exists() else 0
    return max(options.num_class_images - there, 0)


def with_class_pictures(
    data: Pictures, options: PriorOptions, how: dict[str, Any], output: str
) -> Pictures:
    """Return a data set with its class pictures, if ``options`` has any; all in the folder count.

    how: the table ``options.data``. Raises DataError where there are none.
    """
    if options.class_prompt is None:
        return data
    own = ("size", "resize", "flip", "small", "pad", "channels", "cache")
    shared = {key: how[key] for key in own if key in how}
    folder = str(class_folder(options, output))
    found = open_data(folder, {**shared, "held_out": 0}, options.class_prompt)
    assert isinstance(found, Pictures)  # without data.streaming
    return WithClassPictures(data, found)


def row_weights(rows: Tensor, instances: int, prior_loss_weight: float) -> Tensor:
    """Return the loss weight of each row of a batch, half of which are class pictures, (B,).

    The mean over all rows of weight · error is the mean error of the pictures to learn, plus λ
    times that of the class pictures: 2 and 2 λ (DreamBooth's equation 2, as diffusers has it).
    """
    return 2 * torch.where(rows < instances, 1.0, prior_loss_weight)
