"""Combined options of ``ldm-generate``: images and masks, the canvas, two passes."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.streams import picture_source
from ldm.config.upscalers import BuiltIn
from ldm.errors import ArgumentError
from ldm.request import LargeRequest

if TYPE_CHECKING:
    from PIL.Image import Image


def check_steering(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for options that do not go together."""
    for name in ("mask", "outpaint", "depth_map", "image_guidance_scale"):
        if getattr(arguments, name) is not None and arguments.image is None:
            option = name.replace("_", "-")
            raise ArgumentError(f"--{option} says what to do with an --image; give that, too")
    if arguments.mask is not None and arguments.outpaint is not None:
        raise ArgumentError("--mask and --outpaint both say what to draw anew; give one of them")
    if arguments.hires_scale is not None and arguments.image is not None:
        raise ArgumentError("--hires-scale draws from a text; leave --image out")
    if arguments.hires_strength is not None and arguments.hires_scale is None:
        raise ArgumentError("--hires-strength is of the second pass; give --hires-scale, too")
    if arguments.hires_steps is not None and arguments.hires_scale is None:
        raise ArgumentError("--hires-steps are of the second pass; give --hires-scale, too")
    if arguments.hires_upscaler is not None:
        if arguments.hires_scale is None:
            raise ArgumentError("--hires-upscaler is of the second pass; give --hires-scale, too")
        hires_upscaler(arguments)  # a missing one is an error before the model is loaded
    if arguments.refiner_start is not None and arguments.refiner is None:
        raise ArgumentError("--refiner-start says where a --refiner takes over; give that, too")
    if arguments.refiner is not None and arguments.hires_scale is not None:
        raise ArgumentError("--refiner and --hires-scale do not go together; leave one out")
    given = (arguments.variation_seed is not None, arguments.variation_strength is not None)
    if any(given) and not all(given):
        raise ArgumentError("--variation-seed and --variation-strength need each other")


def masked(arguments: argparse.Namespace) -> bool:
    """Whether only a part of the image is drawn anew."""
    return arguments.mask is not None or arguments.outpaint is not None


def given_pictures(arguments: argparse.Namespace) -> tuple[Image | None, Image | None]:
    """Load the image to start from and the mask of what is drawn anew, widened by ``--outpaint``.

    Raises ImageError for a file that cannot be read, ArgumentError for wrong margins.
    """
    return read_given(arguments.image, arguments.mask, arguments.outpaint)


@functools.lru_cache(maxsize=2)  # the pictures of many jobs are the same
def read_given(
    image: str | None, mask: str | None, outpaint: tuple[int, ...] | None
) -> tuple[Image | None, Image | None]:
    """Load as ``given_pictures``. Clear the cache before a run: files may have changed."""
    from ldm.images import load_image, load_layer
    from ldm.techniques.outpainting import extend_canvas

    picture = None if image is None else load_image(picture_source(image))
    if picture is not None and outpaint is not None:
        return extend_canvas(picture, *outpaint)
    return picture, None if mask is None else load_layer(picture_source(mask))


def given_depth(arguments: argparse.Namespace) -> Image | None:
    """Load the depth map. Raises ImageError for a file that cannot be read."""
    return None if arguments.depth_map is None else read_given_depth(arguments.depth_map)


@functools.lru_cache(maxsize=2)
def read_given_depth(file: str) -> Image:
    """Load as ``given_depth``. Clear the cache before a run: files may have changed."""
    from ldm.images.depth import load_depth

    return load_depth(file)


def hires_upscaler(arguments: argparse.Namespace) -> str | Path:
    """Return the name of what enlarges between two passes, or the path of a model.

    Raises ArgumentError for a name that neither ldm nor ``--model-dir`` has.
    """
    from ldm.upscaling import find_upscaler

    try:
        found = find_upscaler(arguments.hires_upscaler, arguments.model_dir)
    except ArgumentError as error:
        raise ArgumentError(f"--hires-upscaler: {error}") from None
    return found.name if isinstance(found, BuiltIn) else found


def pass_strength(arguments: argparse.Namespace) -> float | None:
    """Return the strength of the pass that draws over a picture; None without one."""
    if arguments.hires_scale is None:
        return None if arguments.image is None else arguments.strength
    given = arguments.hires_strength
    return LargeRequest.hires_strength if given is None else given
