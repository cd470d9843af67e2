"""The ControlNet extension's modules, which preprocess pictures, by its names and ours."""

from __future__ import annotations

from PIL import Image

from ldm.config.checking import inside
from ldm.control.preprocessors import PREPROCESSORS
from ldm.control.source import advice
from ldm.images.control_text import MODES, MODULES, OURS
from ldm.images.files import stretch
from ldm.server.errors import ServerError

NONE = ("none", "")
# The extension's other names of what is computed in the same way.
ALIASES = {"lineart_standard": "lineart"}
# What threshold_a and threshold_b are in the extension: (parameter, range, default) here.
SLIDERS: dict[str, tuple[tuple[str, str, float], ...]] = {
    "canny": (("low", "[1, 255]", 100.0), ("high", "[1, 255]", 200.0)),
    "tile": (("factor", "[1, 8]", 1.0),),
}
Module = tuple[str, dict[str, int | float]]


def names() -> list[str]:
    """Return the modules that are here, by the extension's names."""
    theirs = [theirs for theirs, _ in MODULES.values()]
    return ["none", *theirs, *sorted(OURS), *MODES]


def find_module(
    name: str, thresholds: tuple[float, float], label: str, notes: list[str]
) -> Module | None:
    """Return our preprocessor of a module with its parameters; None for "none".

    thresholds: out of range, they are the default, as in the extension; notes says so.
    Raises ServerError for a module that is not here.
    """
    lower = name.strip().lower()
    if lower in NONE:
        return None
    known = {theirs.lower(): ours for ours, (theirs, _) in MODULES.items()}
    ours = {**known, **ALIASES, **{each: each for each in PREPROCESSORS}}.get(lower)
    if ours is None:
        raise ServerError(
            f"{label}: module {name!r:.60} is not there; {advice(name)}", "module", 422
        )
    values: dict[str, int | float] = {}
    for (argument, interval, default), value in zip(
        SLIDERS.get(ours, ()), thresholds, strict=False
    ):
        values[argument] = value if inside(value, interval) else default
        if value >= 0 and values[argument] != value:
            notes.append(f"{label}: threshold {value:g} of {name} is out of {interval}: {default}")
    return ours, values


def with_mask(picture: Image.Image, mask: Image.Image, module: str, label: str) -> Image.Image:
    """Return a picture that is transparent where the mask is white, as "inpaint" reads it."""
    white = mask.convert("L")
    if white.getbbox() is None:
        return picture
    if module.strip().lower() != "inpaint":
        raise ServerError(f"{label}: mask is read by the module inpaint alone", "mask", 422)
    layer = picture.convert("RGBA")
    layer.putalpha(stretch(white, *layer.size[::-1]).point(lambda value: 255 - value))
    return layer
