"""Options of ``ldm-generate`` that steer a picture past its text: masks, canvas, passes, tiles."""

from __future__ import annotations

import argparse
import functools
import math
from typing import TYPE_CHECKING, Any

from ldm.cli.common import number
from ldm.errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.cli.common import Parser

HIRES_STRENGTH, MASK_BLUR = 0.5, 4.0
FAST = {"guidance_interval": (0.28, 5.42), "deep_cache": 3, "int8": None}
# Told in a picture only where they are not at their defaults.
STEERING = frozenset(
    "mask_blur paste_back outpaint hires_scale hires_strength tiling variation_seed "
    "variation_strength guidance_rescale guidance_interval classifier_scale deep_cache".split()
)


def add_steering_options(parser: Parser) -> None:
    """The options; ``steering`` reads them."""
    add = parser.add_argument
    add("--mask", metavar="FILE", help="where to draw the --image anew: white; black stays")
    add(
        "--mask-blur",
        type=float,
        default=MASK_BLUR,
        metavar="PX",
        help=f"how far to soften the mask's edge (default: {MASK_BLUR:g})",
    )
    add(
        "--no-paste-back",
        dest="paste_back",
        action="store_false",
        help="keep what the model makes of the black part, instead of the image's own pixels",
    )
    add(
        "--outpaint",
        type=margins,
        metavar="L,T,R,B",
        help="draw past the edges of the --image: pixels left, top, right, bottom; or one number",
    )
    add(
        "--hires-scale",
        type=float,
        metavar="X",
        help="draw small, then X times as large over it: for pictures larger than the model's own",
    )
    add(
        "--hires-strength",
        type=float,
        metavar="S",
        help=f"how much the second pass redraws, 0 to 1 (default: {HIRES_STRENGTH})",
    )
    add("--tiling", action="store_true", help="draw a tile that fits to itself without a seam")
    add("--variation-seed", type=int, metavar="N", help="another seed, to go a part of the way to")
    add(
        "--variation-strength",
        type=float,
        metavar="S",
        help="how far to go to it, 0 to 1; then it counts up, and --seed does not",
    )
    add(
        "--guidance-rescale",
        type=float,
        default=0.0,
        metavar="R",
        help="take back the contrast that guidance adds, 0 to 1 (default: 0)",
    )
    add(
        "--guidance-interval",
        type=interval,
        default=(0.0, math.inf),
        metavar="LOW,HIGH",
        help="guide only at noise levels σ/α between these (default: at all)",
    )
    add(
        "--classifier-scale",
        type=float,
        metavar="S",
        help="how much the model's classifier, if it has one, pushes towards the class; 0 is off "
        "(default: as the model advises)",
    )
    add(
        "--fast",
        action=Fast,
        nargs=0,
        help="another picture, sooner: --guidance-interval 0.28,5.42 --deep-cache 3, and --int8 "
        "where that gains; what follows on the line overrules it",
    )
    add(
        "--deep-cache",
        type=int,
        default=1,
        metavar="N",
        help="compute the coarse levels at every Nth step only: faster, another picture (3 is "
        "usual; default: 1, off)",
    )


class Fast(argparse.Action):
    """Sets the options that trade likeness to the exact picture for time."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"dest": argparse.SUPPRESS})

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any
    ) -> None:
        for name, value in FAST.items():
            setattr(namespace, name, value)


def margins(text: str) -> tuple[int, ...]:
    """ "64" or "64,0,64,0"."""
    values = [int(part) for part in text.split(",")]
    values = values * 4 if len(values) == 1 else values
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"it is {text!r}; give one number of pixels, or four")
    return tuple(values)


def interval(text: str) -> tuple[float, float]:
    """ "0.3,5"."""
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 2:
        raise argparse.ArgumentTypeError(f"it is {text!r}; give two levels, such as 0.3,5")
    return values


def check_steering(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for options that do not go together."""
    for name in ("mask", "outpaint"):
        if getattr(arguments, name) is not None and arguments.image is None:
            raise ArgumentError(f"--{name} says what to do with an --image; give that, too")
    if arguments.mask is not None and arguments.outpaint is not None:
        raise ArgumentError("--mask and --outpaint both say what to draw anew; give one of them")
    if arguments.hires_scale is not None and arguments.image is not None:
        raise ArgumentError("--hires-scale draws from a text; leave --image out")
    if arguments.hires_strength is not None and arguments.hires_scale is None:
        raise ArgumentError("--hires-strength is of the second pass; give --hires-scale, too")
    given = (arguments.variation_seed is not None, arguments.variation_strength is not None)
    if any(given) and not all(given):
        raise ArgumentError("--variation-seed and --variation-strength need each other")


def masked(arguments: argparse.Namespace) -> bool:
    """Whether only a part of the image is drawn anew."""
    return arguments.mask is not None or arguments.outpaint is not None


def given_pictures(arguments: argparse.Namespace) -> tuple[Image | None, Image | None]:
    """The image to start from and the mask of what is drawn anew: as given, or of a wider canvas.

    Raises ImageError for a file that cannot be read, ArgumentError for wrong margins.
    """
    return read_given(arguments.image, arguments.mask, arguments.outpaint)


@functools.lru_cache(maxsize=2)  # the pictures of many jobs are the same
def read_given(
    image: str | None, mask: str | None, outpaint: tuple[int, ...] | None
) -> tuple[Image | None, Image | None]:
    """As ``given_pictures``. Clear the cache before a run: files may have changed."""
    from ldm.images import load_image
    from ldm.techniques.outpainting import widen

    picture = None if image is None else load_image(image)
    if outpaint is not None:
        return widen(picture, *outpaint)
    return picture, None if mask is None else load_image(mask)


def steering(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``Pipeline.stream`` that the options are."""
    same = (
        *("mask_blur", "paste_back", "tiling", "deep_cache"),
        *("guidance_rescale", "guidance_interval", "classifier_scale"),
    )
    return {name: getattr(arguments, name) for name in same} | {
        "variation_strength": arguments.variation_strength or 0.0
    }


def steering_metadata(arguments: argparse.Namespace, variation_seed: int | None) -> dict[str, Any]:
    """How they are told in a picture, under A1111's names; None where they are off."""
    hires = arguments.hires_scale is not None
    strength = None if arguments.image is None else arguments.strength
    if hires:
        strength = hires_strength(arguments)
    return {
        "Mask blur": number(arguments.mask_blur) if masked(arguments) else None,
        "Hires upscale": number(arguments.hires_scale) if hires else None,
        "Hires upscaler": "Lanczos" if hires else None,
        "Denoising strength": None if strength is None else number(strength),
        "Variation seed": variation_seed,
        "Variation seed strength": arguments.variation_strength,
        "Tiling": arguments.tiling or None,
        "CFG rescale": arguments.guidance_rescale or None,
        "Classifier scale": arguments.classifier_scale,
    }


def hires_strength(arguments: argparse.Namespace) -> float:
    """Of the second pass."""
    return HIRES_STRENGTH if arguments.hires_strength is None else arguments.hires_strength
