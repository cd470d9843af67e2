"""IP-Adapters on the command line: ``--ip-adapter PATH[:SCALE]``, ``--ip-adapter-image FILE``."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

from ldm.cli.controlnets import split_scale
from ldm.cli.fields import DEFAULTS
from ldm.cli.streams import picture_source
from ldm.errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.pipeline import Pipeline

OPTION = "--ip-adapter"
FIELDS = ("ip_adapter_image", "ip_adapter_scale", "ip_adapter_mask", "ip_adapter_blocks")
EMBEDS = ".safetensors"  # a file of embeddings in the place of a picture


def move_scales(arguments: argparse.Namespace) -> None:
    """Move the scales of ``--ip-adapter PATH:SCALE`` to ``--ip-adapter-scale``.

    Raises ArgumentError for both.
    """
    pairs = [split_scale(text, OPTION) for text in arguments.ip_adapter]
    if all(scale is None for _, scale in pairs):
        return
    if arguments.ip_adapter_scale is not None:
        raise ArgumentError("--ip-adapter PATH:SCALE and --ip-adapter-scale say the same; give one")
    arguments.ip_adapter = [path for path, _ in pairs]
    scales = tuple(1.0 if scale is None else scale for _, scale in pairs)
    arguments.ip_adapter_scale = scales if len(scales) > 1 else scales[0]


def check_ip_adapters(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for options of IP-Adapters that do not go together.

    Pictures without an --ip-adapter are for the model's own, if it has one.
    """
    count, pictures = len(arguments.ip_adapter), len(arguments.ip_adapter_image or ())
    if not pictures:
        if count:
            raise ArgumentError("--ip-adapter reads a picture; give --ip-adapter-image FILE, too")
        if arguments.image_encoder is not None:
            raise ArgumentError("--image-encoder is of an --ip-adapter; give that, too")
        for name in FIELDS:
            if getattr(arguments, name) != DEFAULTS[name]:
                option = name.replace("_", "-")
                raise ArgumentError(f"--{option} is of an --ip-adapter-image; give that, too")
    elif count > 1 and pictures != count:
        raise ArgumentError(
            f"there are {count} --ip-adapter and {pictures} --ip-adapter-image; give one for each, "
            "in the same order"
        )
    masks = len(arguments.ip_adapter_mask or ())
    if masks not in (0, pictures):
        raise ArgumentError(
            f"there are {masks} --ip-adapter-mask and {pictures} --ip-adapter-image; give one for "
            "each, in the same order, or none"
        )


def load_ip_adapters(pipe: Pipeline, arguments: argparse.Namespace) -> None:
    """Load the IP-Adapters that options name. Raises CheckpointError for what does not fit."""
    for path in arguments.ip_adapter:
        pipe.load_ip_adapter(path, image_encoder=arguments.image_encoder)


def given_image_prompts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load the pictures of IP-Adapters and their masks, as arguments of ``Pipeline.stream``.

    Raises ImageError for a file that cannot be read.
    """
    if not arguments.ip_adapter_image:
        return {}
    pictures = read_given_image_prompts(tuple(arguments.ip_adapter_image))
    found: dict[str, Any] = {"ip_adapter_image": list(pictures)}
    if arguments.ip_adapter_mask:
        masks = read_given_image_prompts(tuple(arguments.ip_adapter_mask))
        found["ip_adapter_masks"] = list(masks)
    return found


@functools.lru_cache(maxsize=4)
def read_given_image_prompts(files: tuple[str, ...]) -> tuple[Image | str, ...]:
    """Load pictures; the path of a file of embeddings stays, for PyTorch to read.

    Clear the cache before a run: files may have changed.
    """
    from pathlib import Path

    from ldm.errors import ImageError
    from ldm.images import load_image

    found: list[Image | str] = []
    for file in files:
        if file.lower().endswith(EMBEDS):
            if not Path(file).is_file():
                raise ImageError(f"{file} does not exist; give a picture, or its embeddings")
            found.append(file)
        else:
            found.append(load_image(picture_source(file)))
    return tuple(found)
