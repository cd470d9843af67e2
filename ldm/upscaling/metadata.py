"""What the file of an enlarged picture says: all that the picture's own said, and by what it grew.

As A1111's page "Extras": `Postprocess upscale by: 4, Postprocess upscaler: 4x-UltraSharp` stands in
the PNG chunk `extras`, beside the picture's own texts, and here also behind its settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.errors import ArgumentError
from ldm.images.infotext import quote
from ldm.images.metadata import names_settings
from ldm.images.text_fields import (
    OURS,
    PARAMETERS,
    POSTPROCESS,
    embed,
    parameters_of,
    settings_of,
    text_fields,
)

EXTRAS = "extras"
ICC = "icc_profile"  # which colours the numbers stand for


def postprocess_text(scale: float, upscaler: str) -> str:
    """Return A1111's text of an enlargement. upscaler: its label."""
    number = repr(float(scale)).removesuffix(".0")
    return f"Postprocess upscale by: {number}, Postprocess upscaler: {quote(upscaler)}"


def kept_metadata(source: Image.Image, done: str, file_format: str) -> dict[str, Any]:
    """Return arguments of Pillow's ``save``: what a loaded picture says, and what was ``done``.

    file_format: "PNG", "JPEG" or "WEBP". A PNG keeps all texts, the others A1111's and our own.
    """
    fields = text_fields(source)
    parameters, settings = parameters_of(fields), own_settings(fields)
    if parameters is not None and names_settings(parameters):
        parameters = f"{parameters}, {done}"
    if settings is not None:
        before = settings.get(POSTPROCESS)
        settings[POSTPROCESS] = f"{before}, {done}" if before else done
    profile = source.info.get(ICC)
    options = {} if profile is None or source.mode == "CMYK" else {ICC: profile}
    if file_format != "PNG":
        return options | embed(done if parameters is None else parameters, file_format, settings)
    texts = {name: text for name, text in source.info.items() if isinstance(text, str)}
    texts |= {} if parameters is None else {PARAMETERS: parameters}
    texts |= {} if settings is None else {OURS: json.dumps(settings)}
    info = PngInfo()
    for name, text in (texts | {EXTRAS: done}).items():
        info.add_text(str(name), text)
    return options | {"pnginfo": info}


def own_settings(fields: Mapping[str, str]) -> dict[str, Any] | None:
    """Return ldm's settings in a picture; None for none, or broken ones."""
    try:
        return settings_of(fields)
    except ArgumentError:
        return None
