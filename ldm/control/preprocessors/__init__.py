"""Control pictures by formulas, without a network: functions of a PIL image to an RGB image.

A result has the size of the image. ``result.info["note"]`` may hold what a user should know, such
as that a drawing was inverted, or that nothing was found.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL.Image import Image

from ldm.control.preprocessors.canny import canny
from ldm.control.preprocessors.grey import grey
from ldm.control.preprocessors.inpaint import inpaint, make_inpaint_condition
from ldm.control.preprocessors.lineart import lineart
from ldm.control.preprocessors.scribble import scribble
from ldm.control.preprocessors.softedge import softedge
from ldm.control.preprocessors.tile import tile

PREPROCESSORS: dict[str, Callable[..., Image]] = {
    "canny": canny,
    "softedge": softedge,
    "scribble": scribble,
    "lineart": lineart,
    "tile": tile,
    "grey": grey,
    "inpaint": inpaint,
}

__all__ = ["PREPROCESSORS", "make_inpaint_condition", *PREPROCESSORS]
