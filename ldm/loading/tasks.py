"""What a model's task asks of a request: which pictures it reads, and what they default to."""

from __future__ import annotations

from ldm.errors import ArgumentError
from ldm.loading.model import Model
from ldm.request import Request, default_strength


def check_task(model: Model, request: Request) -> None:
    """Raise ArgumentError for pictures that a model's task lacks, or does not read."""
    image, mask, depth = (getattr(request, name) for name in ("image", "mask_image", "depth_map"))
    if model.inpaints and mask is None:
        raise ArgumentError("this is an inpainting model; give image and mask_image")
    if model.edits and image is None:
        raise ArgumentError("this model edits an image as the text says; give image")
    if model.edits and mask is not None:
        raise ArgumentError("this model edits the whole image; leave mask_image out")
    if model.task == "depth" and (depth is None or image is None):
        raise ArgumentError(
            "this model draws over an image to the depth in it; give image and depth_map, a grey "
            "picture of the image in which near is bright: ldm has no depth estimator"
        )
    if model.task != "depth" and depth is not None:
        raise ArgumentError("depth_map is given, but this model reads no depth; leave it out")
    if not model.edits and request.image_guidance_scale is not None:
        raise ArgumentError(
            f"image_guidance_scale is {request.image_guidance_scale}, but this model does not edit "
            "by instructions; leave it out"
        )
    if mask is not None and image is None:
        raise ArgumentError("mask_image says which part of an image to redraw; give image")


def image_scale(model: Model, given: float | None) -> float | None:
    """Return the scale of the guidance by the image; None for a model that does not edit."""
    if not model.edits:
        return None
    return model.defaults.image_guidance_scale if given is None else given


def image_strength(model: Model, request: Request) -> float | None:
    """Return how much of the image to redraw; None without one."""
    if model.edits and request.strength is None:
        return default_strength(masked=False, edits=True)
    return request.image_strength
