"""Upscalers of pictures: any PIL image → the same picture at another size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from ldm.config.upscalers import BUILT_IN, BuiltIn, upscaler_label
from ldm.errors import ArgumentError
from ldm.upscaling.folder import find_upscaler

if TYPE_CHECKING:
    import torch

MAX_SIDE, MAX_PIXELS = 1 << 16, 1 << 28  # of a picture that is made; 268 megapixels, 800 MB
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class Upscaler(Protocol):
    """A function of a picture and the size to make it.

    Attributes:
        name: as A1111 writes it into pictures. scale: of a model; None is any.
    """

    name: str
    scale: int | None

    def __call__(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Return the picture at ``width`` x ``height`` pixels, grey or transparent if it was.

        Raises ArgumentError for a size that is too large.
        """

    def check(self, size: tuple[int, int], width: int, height: int) -> None:
        """Raise the ArgumentError that a picture of ``size`` (width, height) would raise."""


class Resize:
    """An upscaler of Pillow: each pixel is a weighted sum of those near it."""

    scale: int | None = None

    def __init__(self, built_in: BuiltIn) -> None:
        self.name, self.filter = built_in.label, FILTERS[built_in.mode]

    def __call__(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """See ``Upscaler``."""
        from ldm.upscaling.pictures import to_plain

        self.check(image.size, width, height)
        return to_plain(image).resize((width, height), self.filter)

    def check(self, size: tuple[int, int], width: int, height: int) -> None:
        """See ``Upscaler``."""
        check_size(width, height)


def load_upscaler(
    name: str | Path,
    folder: Path | None = None,
    device: str | torch.device | None = None,
) -> Upscaler:
    """Load the upscaler of a name: see ``find_upscaler``.

    folder: of models. device: of a model; None takes CUDA if it is available, else the CPU.
    Raises ArgumentError for an unknown name, for one that works on latents, and if spandrel is not
    installed, CheckpointError for a file that is no upscaler.
    """
    found = find_upscaler(name, folder)
    if isinstance(found, BuiltIn):
        if found.latent:
            names = ", ".join(upscaler_label(one) for one in BUILT_IN if not BUILT_IN[one].latent)
            raise ArgumentError(
                f"{found.label} enlarges latents between two passes, and this is a picture; give "
                f"a model, or one of {names}"
            )
        return Resize(found)
    from ldm.upscaling.model import load_model

    return load_model(found, device)


def check_size(width: int, height: int) -> None:
    """Raise ArgumentError for a size that no picture is made at."""
    for name, value in (("width", width), ("height", height)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name} is {value!r:.40}; it must be a positive whole number")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ArgumentError(
            f"the size is {width}x{height}; at most {MAX_PIXELS >> 20} megapixels are made, and "
            f"{MAX_SIDE:,} pixels along a side"
        )
