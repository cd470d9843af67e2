"""Opening a data set of captioned pictures: the sizes of batches, tokens, and what to warn of."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.text.tokenizer import CLIPTokenizer
from ldm.training.data import Pictures, open_data
from ldm.training.data.buckets import bucket_sizes
from ldm.training.data.crops import Size

MOST_COMPARED = 64  # pictures, to warn if all are the same


@functools.lru_cache(maxsize=1 << 14)  # 5 MB
def ids_of(tokenizer: CLIPTokenizer, text: str) -> Tensor:
    """Return the ids of a text, int32 (77,)."""
    return torch.tensor(tokenizer([text])[0], dtype=torch.int32)


def captioned_pictures(
    name: str, options: dict[str, Any], prompt: str | None = None, masks: bool = False
) -> Pictures:
    """Open a data set with captions.

    prompt: the caption of pictures without one. masks: whether ``data.mask`` is of use.

    Raises ArgumentError for a stream: see there.
    """
    data = open_data(name, options, prompt, masks)
    if not isinstance(data, Pictures):
        raise ArgumentError(
            f"{name} is a stream, of which latents cannot be kept; leave data.streaming out"
        )
    data.captions(torch.arange(1))
    return data


def warn_of_few(data: Pictures, rows: Tensor, size: Size) -> None:
    """Warn of one picture, or several that are the same: these are learnt by heart.

    rows: of the pictures to learn, of which the first few are compared at a size.
    """
    count, first = len(rows), None
    for row in rows[:MOST_COMPARED].split(1):
        if len(data.readable(row, size)):
            picture = data.pixels(row, size)
            if first is not None and not torch.equal(first, picture):
                return
            first = picture
    if first is not None:
        what = f"all {count} pictures are the same" if count > 1 else "it has one picture"
        warnings.warn(
            f"{data.name}: {what}; a model learns it by heart, rather than what it shows: give "
            "several that differ in all but that",
            stacklevel=3,
        )


def warn_of_long(tokenizer: CLIPTokenizer, captions: list[str], name: str) -> None:
    """Warn of captions that do not fit into the text encoder, and are cut."""
    most = tokenizer.model_max_length - 2
    long = [text for text in captions if len(tokenizer.encode(text)) > most]
    if long:
        warnings.warn(
            f"{len(long)} of {len(captions) - 1} different captions of {name} have more than "
            f"{most} tokens and are cut there (such as {long[0][:60]!r}, …)",
            stacklevel=2,
        )


def picture_sizes(data: Pictures, buckets: dict[str, Any] | None, multiple: int) -> list[Size]:
    """Return the sizes in px to encode pictures at, each side a multiple of ``multiple``.

    Raises ArgumentError where a size is not, or is not given for pictures of many sizes.
    """
    side = data.options.size
    if side is None and (buckets is not None or not data.cheap):
        raise ArgumentError(f"set data.size, in px, for the pictures of {data.name}")
    if buckets is None:
        size = data.shape(0) if side is None else (side, side)
        if size[0] % multiple or size[1] % multiple:
            raise ArgumentError(
                f"pictures have {size[1]} × {size[0]} px; sides must be multiples of {multiple} px "
                "for this VAE and U-Net; set data.size"
            )
        return [size]
    assert side is not None  # see above
    for key in buckets.keys() - {"multiple", "max_ratio"}:
        raise ArgumentError(f"buckets.{key} is not an option; known are multiple and max_ratio")
    step = buckets.get("multiple", math.lcm(64, multiple))
    if step % multiple:
        raise ArgumentError(
            f"buckets.multiple is {step}; it must be a multiple of {multiple} px for this VAE and "
            "U-Net"
        )
    return bucket_sizes(side, step, buckets.get("max_ratio", 2.0))
