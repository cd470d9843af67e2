"""The pictures that ControlNets and T2I-Adapters read: as a user gives them → tensors.

Both kinds take the same forms; ``kind`` says which arguments of a request are meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from ldm.config.picture_readers import CONTROLNET, PictureReader
from ldm.control.controlnet import ControlNet
from ldm.control.steering import ControlUse
from ldm.errors import ArgumentError
from ldm.images.inputs import pictures_to_tensor, read_pictures
from ldm.request import Request, arguments_of

Rows = Tensor | list[Image]  # pictures of one network: one for all prompts, or one for each


def read_hints(
    networks: Mapping[str, object], request: Request, kind: PictureReader = CONTROLNET
) -> list[Rows | None]:
    """Load the pictures of each network, in order; None for one at scale 0 without pictures.

    Raises ArgumentError for a number of pictures that does not fit the networks, or if no network
    is loaded, ImageError for what cannot be read.
    """
    if not networks:
        refuse_unused(request, kind)
        return []
    scales = per_network(kind.scale, getattr(request, kind.scale), len(networks), kind)
    given = getattr(request, kind.image)
    if given is None:
        if any(scales):
            raise ArgumentError(
                f"{kind.image} is missing, which {' and '.join(networks)} would read; give it, or "
                f"{kind.unload}(name) (image is what to start from, also for {kind.name}s)"
            )
        return [None] * len(networks)
    sources = split_sources(given, len(networks), kind)
    return [load_rows(source, len(request.prompts), kind) for source in sources]


def control_uses(
    networks: Mapping[str, ControlNet],
    request: Request,
    hints: Sequence[Rows | None],
    size: tuple[int, int],
) -> list[ControlUse]:
    """Return how each network is used in a run at (height, width), with pictures of that size.

    Raises ArgumentError for pictures of another number of channels, for values that are not
    numbers, and for a range without steps.
    """
    given = {
        "controlnet_conditioning_scale": request.controlnet_conditioning_scale,
        "control_guidance_start": request.control_guidance_start,
        "control_guidance_end": request.control_guidance_end,
    }
    values = [per_network(name, value, len(networks)) for name, value in given.items()]
    uses = []
    for network, hint, scale, start, end in zip(networks.values(), hints, *values, strict=True):
        if start >= end:
            raise ArgumentError(
                f"control_guidance_start is {start:g} and control_guidance_end {end:g}; the start "
                "must be less"
            )
        if hint is not None:
            rows = to_size(hint, size, network.config.conditioning_channels, request.repeats)
            uses.append(ControlUse(network, rows, scale, start, end))
    return uses


def refuse_unused(request: Request, kind: PictureReader) -> None:
    """Raise ArgumentError for arguments of a kind of which none is loaded."""
    for name in arguments_of(kind):
        if getattr(request, name) not in (None, getattr(Request, name)):
            raise ArgumentError(
                f"{name} is of a {kind.name}, and none is loaded: {kind.load}(path), or "
                f"{kind.flag} FILE"
            )


def per_network(
    name: str, value: float | Sequence[float], count: int, kind: PictureReader = CONTROLNET
) -> list[float]:
    """Return an argument's value for each of ``count`` networks."""
    if not isinstance(value, Sequence):
        return [float(value)] * count
    if len(value) != count:
        raise ArgumentError(
            f"{name} has {len(value)} values for {kind.counted(count)}; give one, or one for each"
        )
    return [float(one) for one in value]


def split_sources(source: Any, count: int, kind: PictureReader = CONTROLNET) -> list[Any]:
    """Return the pictures of each of ``count`` networks; see ``Request.control_image``."""
    if count == 1:
        return [source]
    if not isinstance(source, list | tuple):
        raise ArgumentError(
            f"{kind.image} is one picture for {kind.counted(count)}; give a list, in their order"
        )
    given = len(source)
    if any(isinstance(one, list | tuple) for one in source):  # of each prompt
        if not all(isinstance(one, list | tuple) and len(one) == len(source[0]) for one in source):
            raise ArgumentError(
                f"{kind.image} holds lists of different lengths; give for each prompt a list of "
                f"{count} pictures"
            )
        source = [list(one) for one in zip(*source, strict=True)]
        given = len(source)
    if given != count:
        raise ArgumentError(
            f"{kind.image} holds {given} pictures for {kind.counted(count)}; give one for each, in "
            "the order of loading"
        )
    return list(source)


def load_rows(source: Any, prompts: int, kind: PictureReader = CONTROLNET) -> Rows:
    """Read the pictures of one network: one for all prompts, or one for each."""
    is_list = isinstance(source, list | tuple)
    parts = list(source) if is_list else [source]
    if parts and all(torch.is_tensor(part) and part.is_floating_point() for part in parts):
        return read_tensor(parts, prompts, kind)
    pictures = read_pictures(source, kind.image, prompts, 1)
    assert pictures is not None
    return pictures


def read_tensor(parts: Sequence[Tensor], prompts: int, kind: PictureReader) -> Tensor:
    """Stack tensors (C, H, W) or (b, C, H, W) of floats: float32 (1 or prompts, C, H, W)."""
    shapes = ", ".join(str(tuple(part.shape)) for part in parts)
    rows = [part[None] if part.ndim == 3 else part for part in parts]
    if any(row.ndim != 4 or not row.numel() or row.shape[1:] != rows[0].shape[1:] for row in rows):
        raise ArgumentError(f"{kind.image} has the shape {shapes}; expected (b, 3, H, W)")
    found = torch.cat([row.detach().float().cpu() for row in rows])
    if len(found) not in (1, prompts):
        raise ArgumentError(
            f"{kind.image} holds {len(found)} pictures for {prompts} prompts; give one, or one "
            "for each"
        )
    if not bool(((found >= kind.least) & (found <= 1)).all()):  # so written, NaN is refused too
        marks = f", or {kind.least:g} for what an inpainting {kind.name} fills in"
        raise ArgumentError(
            f"{kind.image} has values from {found.min():g} to {found.max():g}; expected [0, 1]"
            f"{marks if kind.least else ''}"
        )
    return found


def hint_size(hints: Sequence[Rows | None]) -> tuple[int, int] | None:
    """Return the (height, width) of the first picture; None without one."""
    for rows in hints:
        if isinstance(rows, Tensor):
            return rows.shape[2], rows.shape[3]
        if rows is not None:
            return rows[0].height, rows[0].width
    return None


def to_size(
    rows: Rows,
    size: tuple[int, int],
    channels: int,
    repeats: int,
    kind: PictureReader = CONTROLNET,
) -> Tensor:
    """Return pictures (1 or B, channels, H, W) of a size; one for each prompt is repeated."""
    if not isinstance(rows, Tensor):
        if channels not in (1, 3):
            raise ArgumentError(
                f"{kind.image} is a picture of 3 channels, but this {kind.name} reads {channels}; "
                f"give a tensor (b, {channels}, H, W)"
            )
        rows = pictures_to_tensor(rows, *size, channels) / 2 + 0.5
    elif rows.shape[1] != channels:
        raise ArgumentError(
            f"{kind.image} has {rows.shape[1]} channels; this {kind.name} reads {channels}"
        )
    elif rows.shape[2:] != size:
        rows = F.interpolate(rows, size)  # the nearest values: -1 stays a mark
    return rows if len(rows) == 1 else rows.repeat_interleave(repeats, dim=0)


def expand_hints(request: Request, count: int, kind: PictureReader = CONTROLNET) -> Any:
    """Return the pictures of ``count`` networks with one for each picture to draw.

    For a request with a prompt for each picture, in the form of diffusers: lists by prompts.
    """
    given = getattr(request, kind.image)
    if given is None or not count:
        return given
    every = []
    for source in split_sources(given, count, kind):
        rows = load_rows(source, len(request.prompts), kind)
        each = list(rows) * (len(request.prompts) if len(rows) == 1 else 1)
        every.append([row for row in each for _ in range(request.repeats)])
    return every[0] if count == 1 else [list(one) for one in zip(*every, strict=True)]
