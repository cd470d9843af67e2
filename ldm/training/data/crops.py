"""Pictures of any size → pictures of one size: pad, resize, crop, mirror, and scale to [-1, 1].

A picture is uint8 (H, W, C); a size is (height, width).
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]


def pad(picture: np.ndarray, side: int) -> np.ndarray:
    """Pad a picture with black to ``side`` × ``side``; a larger picture stays as it is."""
    height, width, channels = picture.shape
    out = np.zeros((max(height, side), max(width, side), channels), np.uint8)
    top, left = (out.shape[0] - height) // 2, (out.shape[1] - width) // 2
    out[top : top + height, left : left + width] = picture
    return out


def scaled_size(stored: Size, target: Size, shorter: int | None) -> Size:
    """Return the size to resize to before the crop: it covers ``target``, proportions are kept.

    ``shorter`` is the shorter side to resize to; None fits the target, 0 leaves the size alone.
    A picture that would not cover the target is enlarged until it does.
    """
    cover = max(t / s for t, s in zip(target, stored, strict=True))
    wanted = cover if shorter is None else shorter / min(stored) if shorter else 1.0
    scale = max(wanted, cover)
    height, width = (max(round(s * scale), t) for s, t in zip(stored, target, strict=True))
    return height, width


def resize_picture(picture: np.ndarray, size: Size) -> np.ndarray:
    """Resize with antialiasing (Lanczos, as ``ldm.images`` does), in 8 bits."""
    if picture.shape[:2] == size:
        return picture
    grey = picture.shape[2] == 1
    image = Image.fromarray(picture[:, :, 0] if grey else picture)
    image = image.resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(image)[:, :, None] if grey else np.asarray(image)


def places(rooms: list[int], generator: torch.Generator) -> list[int]:
    """Draw a place in each [0, room]; for equal rooms, the same as one ``torch.randint``."""
    return [int(torch.randint(room + 1, (), generator=generator)) for room in rooms]


def crop(
    pictures: list[np.ndarray], size: Size, random: bool, flip: bool, generator: torch.Generator
) -> np.ndarray:
    """Cut each picture to ``size``, in training: (B, h, w, C). Draws tops, lefts, then mirrors."""
    height, width = size
    rooms = [(p.shape[0] - height, p.shape[1] - width) for p in pictures]
    if random:
        tops = places([top for top, _ in rooms], generator)
        lefts = places([left for _, left in rooms], generator)
    else:
        tops, lefts = [top // 2 for top, _ in rooms], [left // 2 for _, left in rooms]
    mirrored = [False] * len(pictures)
    if flip:
        mirrored = (torch.rand(len(pictures), generator=generator) < 0.5).tolist()
    out = np.empty((len(pictures), height, width, pictures[0].shape[2]), np.uint8)
    rows = zip(pictures, tops, lefts, mirrored, strict=True)
    for row, (picture, top, left, mirror) in enumerate(rows):
        cut = picture[top : top + height, left : left + width]
        out[row] = cut[:, ::-1] if mirror else cut
    return out


def centre_crop(pictures: list[np.ndarray], size: Size) -> np.ndarray:
    """Cut the middle out of each picture: (B, h, w, C)."""
    return crop(pictures, size, False, False, torch.Generator())


def images_to_tensor(images: np.ndarray) -> Tensor:
    """Convert uint8 (B, H, W, C) → float32 (B, C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
