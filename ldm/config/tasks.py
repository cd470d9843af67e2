"""What a U-Net reads beside the noisy latents, by the number of its input channels."""

from __future__ import annotations

from typing import Literal

Task = Literal["text", "inpaint", "edit", "depth"]

# What each is called, and the input channels if latents have four.
TASK_NAMES: dict[Task, str] = {
    "text": "text to image",
    "inpaint": "inpainting",
    "edit": "instruct-pix2pix, 8 channels: edits by instruction",
    "depth": "depth to image",
}


def task_of(in_channels: int, latent_channels: int) -> Task | None:
    """Return the task of a U-Net; None if it reads something unknown.

    Inpainting networks read a mask and the masked image (Rombach et al. 2022, section 4.5), editing
    ones the image (Brooks et al. 2023, section 3.2), depth-conditioned ones a map of the depth.
    """
    tasks: dict[int, Task] = {
        0: "text",
        1: "depth",
        latent_channels: "edit",
        latent_channels + 1: "inpaint",
    }
    return tasks.get(in_channels - latent_channels)
