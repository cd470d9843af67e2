"""Sizes and pictures that a user gives → tensors that the pipeline can work with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from numpy import ndarray
from PIL.Image import Image
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.images.arrays import array_pictures, is_array
from ldm.images.files import MAX_PIXELS, MAX_SIDE, load_image, stretch, to_tensor

File = str | Path | Image
Picture = File | ndarray[Any, Any] | Tensor


def check_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Return (height, width) in pixels, unchanged; raise ArgumentError for an impossible size."""
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, Integral) or value < factor or value % factor:
            kind = f"multiple of {factor}" if factor > 1 else "whole number"
            raise ArgumentError(f"{name} is {value}; it must be a positive {kind}")
    if height * width > MAX_PIXELS:
        raise ArgumentError(
            f"{width}x{height} is {height * width:,} pixels; at most {MAX_PIXELS:,} work"
        )
    if max(height, width) > MAX_SIDE:
        raise ArgumentError(f"the size is {width}x{height}; a side may have {MAX_SIDE} pixels")
    return height, width


def fit_size(
    height: int | None,
    width: int | None,
    pictures: Sequence[Image] | None,
    own: tuple[int, int],
    factor: int,
) -> tuple[int, int]:
    """Choose the (height, width): as given, else the first picture's or the model's ``own``.

    Raises ArgumentError as ``check_size``.
    """
    if pictures is not None:
        own = (pictures[0].height // factor * factor, pictures[0].width // factor * factor)
    return check_size(
        own[0] if height is None else height, own[1] if width is None else width, factor
    )


def read_pictures(
    source: Picture | Sequence[Picture] | None,
    name: str,
    prompts: int,
    repeats: int,
    load: Callable[[File], Image] = load_image,
) -> list[Image] | None:
    """Load one picture for all prompts or one per prompt, each repeated ``repeats`` times.

    None without a source. Pictures are RGB unless ``load`` is another function.

    Raises ArgumentError for another number, ImageError for what cannot be read.
    """
    if source is None:
        return None
    if isinstance(source, str | Path | Image) or not isinstance(source, Sequence):
        sources = flat(source, name)
    else:
        sources = [one for part in source for one in flat(part, name)]
    if len(sources) not in (1, prompts):
        raise ArgumentError(
            f"{name} holds {len(sources)} pictures for {prompts} prompts; give one, or one for each"
        )
    pictures = [load(source) for source in sources]
    if len(pictures) == 1:
        return pictures
    return [picture for picture in pictures for _ in range(repeats)]


def flat(source: Picture, name: str) -> list[File]:
    """Return the pictures of an array or a tensor, or the one that anything else is."""
    if is_array(source):
        return [*array_pictures(source, name)]
    if isinstance(source, str) and re.match(r"(https?|ftp|s3|data):", source, re.IGNORECASE):
        raise ArgumentError(
            f"{name} is {source!r:.60}, an address, and no network is used; download it, and "
            "give the file"
        )
    return [source]  # type: ignore[list-item]  # what it is not is an error when it is loaded


def pictures_to_tensor(
    pictures: Sequence[Image], height: int, width: int, channels: int = 3
) -> Tensor:
    """Stretch to one size: float32 (B, channels, H, W) in [-1, 1]; one channel is grey."""
    if channels == 1:
        pictures = [picture.convert("L").convert("RGB") for picture in pictures]
    resized = [stretch(picture, height, width) for picture in pictures]
    return to_tensor(resized)[:, :channels]


def expand(rows: Tensor, count: int) -> Tensor:
    """Repeat the rows: (b, …) → (count, …)."""
    return rows.repeat(count // len(rows), *(1,) * (rows.ndim - 1))
