"""The pictures, embeddings and masks of IP-Adapters, as a user gives them.

For one adapter: a picture, or several that it reads together. For several adapters: a list with a
picture or a list of pictures for each, in the order of loading, as in diffusers. In the place of a
picture, a file of embeddings that ``save_image_embeds`` wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from ldm.checkpoints.tensors import read_tensors, write_tensors
from ldm.config import IPAdapterConfig
from ldm.errors import ArgumentError, ImageError
from ldm.images import load_image
from ldm.images.files import stretch
from ldm.images.inputs import flat
from ldm.request import Request

IMAGE, EMBEDS, MASKS = "ip_adapter_image", "ip_adapter_image_embeds", "ip_adapter_masks"
KEY = "image_embeds"  # of a file's one tensor
THRESHOLD = 0.5  # of masks
MOST = 64  # pictures of one adapter
Lists = (list, tuple)


@dataclass
class Sources:
    """What one adapter reads: pictures, then embeddings (1 or 2, n, …)."""

    pictures: list[Image] = field(default_factory=list)
    embeds: list[Tensor] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self.pictures) + sum(one.shape[1] for one in self.embeds)


def read_sources(request: Request, names: Sequence[str]) -> list[Sources] | None:
    """Read what each adapter reads; None without pictures and embeddings.

    Raises ArgumentError for a number that does not fit, ImageError for what cannot be read.
    """
    image, embeds = request.ip_adapter_image, request.ip_adapter_image_embeds
    if image is not None and embeds is not None:
        raise ArgumentError(f"{IMAGE} and {EMBEDS} are both given; one of them decides")
    if embeds is not None:
        rows = [embeds] if torch.is_tensor(embeds) else embeds
        if not isinstance(rows, Lists) or len(rows) != len(names):
            given = len(rows) if isinstance(rows, Lists) else type(rows).__name__
            raise ArgumentError(
                f"{EMBEDS} is {given} for {plural(names)}; give a list with a tensor for each"
            )
        return [Sources(embeds=[as_embeds(one, EMBEDS)]) for one in rows]
    if image is None:
        return None
    return [read_one(one) for one in for_each(image, names, IMAGE)]


def plural(names: Sequence[str]) -> str:
    """Count adapters."""
    return f"{len(names)} IP-Adapter{'s' * (len(names) != 1)}"


def for_each(source: Any, names: Sequence[str], argument: str) -> list[list[Any]]:
    """Split an argument into the list of each adapter."""
    if len(names) == 1:
        inner = source if isinstance(source, Lists) else [source]
        if len(inner) == 1 and isinstance(inner[0], Lists):
            inner = inner[0]
        found = [list(inner)]
    elif not isinstance(source, Lists) or len(source) != len(names):
        given = f"{len(source)} entries" if isinstance(source, Lists) else "one picture"
        raise ArgumentError(
            f"{argument} holds {given} for {plural(names)}; give a list with one for each of "
            f"{', '.join(names)}, or a list of pictures for each"
        )
    else:
        found = [list(one) if isinstance(one, Lists) else [one] for one in source]
    for pictures in found:
        if any(isinstance(one, Lists) for one in pictures):
            raise ArgumentError(f"{argument} is nested too deep; give a list for each IP-Adapter")
        if not 1 <= len(pictures) <= MOST:
            raise ArgumentError(
                f"{argument} holds {len(pictures)} pictures for one IP-Adapter; expected 1 to "
                f"{MOST}"
            )
    return found


def read_one(parts: Sequence[Any]) -> Sources:
    """Read the pictures and the files of embeddings of one adapter."""
    found = Sources()
    for part in parts:
        if part is None:
            raise ArgumentError(f"{IMAGE} holds None; give a picture for each IP-Adapter")
        if is_embeds_file(part):
            found.embeds.append(load_image_embeds(part))
        else:
            found.pictures += [load_image(one) for one in flat(part, IMAGE)]
    return found


def is_embeds_file(source: object) -> bool:
    """Whether a path is of a file of embeddings."""
    return isinstance(source, str | Path) and str(source).lower().endswith(".safetensors")


def as_embeds(value: Any, name: str) -> Tensor:
    """Return embeddings (1 or 2, n, …). Raises ArgumentError for another shape or kind."""
    shape = tuple(getattr(value, "shape", ()))
    if not torch.is_tensor(value) or not value.is_floating_point() or len(shape) not in (3, 4):
        found = shape or type(value).__name__
        raise ArgumentError(
            f"{name} is {found}; expected a tensor (2, n, P), or (2, n, N, P) of all patches: the "
            "empty picture's row, then the pictures'"
        )
    if shape[0] not in (1, 2) or not 1 <= shape[1] <= MOST:
        raise ArgumentError(
            f"{name} has the shape {shape}; expected 2 rows, or 1 without guidance, of 1 to {MOST} "
            "pictures"
        )
    if not bool(value.isfinite().all()):
        raise ArgumentError(f"{name} has values that are NaN or infinite")
    return value.detach()


def check_embeds(embeds: Tensor, config: IPAdapterConfig, label: str) -> None:
    """Raise ArgumentError for embeddings of another encoder or another kind of adapter."""
    axes = 4 if config.reads_patches else 3
    form = f"(2, n, N, {config.image_width})" if axes == 4 else f"(2, n, {config.image_width})"
    if embeds.ndim != axes or embeds.shape[-1] != config.image_width:
        raise ArgumentError(
            f"{EMBEDS} has the shape {tuple(embeds.shape)}; the IP-Adapter {label} reads {form}"
        )


def save_image_embeds(path: str | Path, embeds: Tensor) -> None:
    """Write the embeddings of an adapter's pictures as a safetensors file.

    embeds: as ``Pipeline.encode_ip_adapter_image`` returns them. Raises ArgumentError for a path
    that exists or does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise ArgumentError(f"{path} does not end in .safetensors, as files of embeddings do")
    if path.exists():
        raise ArgumentError(f"{path} exists; give another name, or remove it")
    write_tensors({KEY: as_embeds(embeds, "embeds").cpu()}, path)


def load_image_embeds(path: str | Path) -> Tensor:
    """Read a file of embeddings. Raises ImageError for one that is missing or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path} does not exist; give a picture, or a file of its embeddings")
    tensors = read_tensors(path)
    if set(tensors) != {KEY}:
        shown = ", ".join(list(tensors)[:3])
        raise ImageError(
            f"{path} holds {shown or 'nothing'}, not the embeddings of a picture ({KEY}) that "
            "save_image_embeds writes"
        )
    return as_embeds(tensors[KEY], str(path))


def mask_sources(
    request: Request, names: Sequence[str], pictures: Sequence[int]
) -> list[list[Any] | Tensor | None]:
    """Return the masks of each adapter; None without. Raises ArgumentError for their number.

    pictures: how many each adapter reads.
    """
    given = request.ip_adapter_masks
    if given is None:
        return [None] * len(names)
    if torch.is_tensor(given):
        given = [given]
    found: list[list[Any] | Tensor | None] = []
    if len(names) > 1 and isinstance(given, Lists) and len(given) == len(names):
        every = [list(one) if isinstance(one, Lists) else [one] for one in given]
    else:
        every = for_each(given, names, MASKS)
    for name, masks, count in zip(names, every, pictures, strict=True):
        if all(mask is None for mask in masks):
            found.append(None)
            continue
        own = tensor_masks(masks[0]) if len(masks) == 1 else None
        number = len(masks if own is None else own)
        if number != count:
            raise ArgumentError(
                f"{MASKS} holds {number} masks for the {count} pictures of {name}; give one for "
                "each"
            )
        found.append(list(masks) if own is None else own)
    return found


def tensor_masks(value: Any) -> Tensor | None:
    """Return diffusers' form of masks, (1,n,H,W) or (n,1,H,W), as (n,H,W); None of others."""
    if not torch.is_tensor(value) or value.ndim != 4 or not value.is_floating_point():
        return None
    masks = value[0] if value.shape[0] == 1 else value[:, 0]
    return masks.detach().float()


def read_masks(masks: list[Any] | Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks as float32 (n,H,W), 0 or 1; pictures are stretched to (height, width)."""
    if isinstance(masks, Tensor):
        return (masks >= THRESHOLD).float()
    rows = []
    for mask in masks:
        for one in flat(mask, MASKS):
            grey = stretch(load_image(one), *size).convert("L")
            rows.append(torch.from_numpy(np.asarray(grey).astype(np.float32) / 255))
    return (torch.stack(rows) >= THRESHOLD).float()
